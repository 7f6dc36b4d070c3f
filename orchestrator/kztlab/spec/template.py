# SPDX-License-Identifier: GPL-2.0-or-later
"""The example that `kztlab init` writes."""

_EXAMPLE = """\
# A lab: start it with `kztlab up FILE`, end it with `kztlab down {lab}`.
lab: {lab}

# The page store on the host that the guests share.
store:
  memory: 256MiB            # pages and index never take more
  codec: lzo                # or lz4, zstd:LEVEL, none
  dedup: client             # each guest's own pages share memory; or off, domain:NAME

guests:
  web:
    count: 2                # web-1 and web-2
    memory: 192MiB
    frontend: nbd           # or vhost-user-blk, relay, tmem; baselines: disk, zram, zswap, none
    swap: 384MiB

# All workloads start once every guest is ready.
workloads:
  - name: fill
    on: [web]               # a name stands for all of its count; or single ones: [web-1]
    anon:                   # fills memory, touches all of it again, verifies every page
      size: 288MiB          # 1.5 times the guest's memory: the rest has to be swapped
      content: mixed        # or real, text, zero, random
      passes: 2
    timeout: 10min
  # - name: rewrite
  #   on: [web-1]
  #   files: {{size: 256MiB, duration: 30s}}  # the same for files and the page cache
  # - name: build
  #   on: [web-2]
  #   command: "make -C /src -j2"

collect:
  interval: 1s              # between two samples of host, store and guests
"""


def init_text(lab: str = "quickstart") -> str:
    """A commented cluster.yaml for a lab of that name; it fits a host with 1.5 GiB to spare."""
    return _EXAMPLE.format(lab=lab)
