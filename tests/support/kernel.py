# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots the guest kernel with a store of its own behind /dev/kztmem, and runs a script there.

No agent, port or host has a part in it: images/kernel/selftest/store.c is the store, and misbehaves
as it is told.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.image import linux
from kztlab.image.cache import BUILT
from kztlab.image.cpio import Archive
from kztlab.image.recipe import REPOSITORY, recipe
from kztlab.places import Places
from kztlab.programs import find

if TYPE_CHECKING:
    from kztlab.image import Image

SELFTEST = REPOSITORY / "images/kernel/selftest"
HEADER = "include/uapi/linux/kztmem.h"
MODULE = ("crc.c", "evicted.c", "kztmem.h", "receive.c", "send.c")

ROOM_TO_CHECK = 512
"""MiB that a guest has at least whose kernel checks itself (KZTLAB_KERNEL_DEBUG)."""

COMPLAINT = re.compile(r"BUG:|WARNING:|KASAN:|unreferenced object|Oops")
"""What a kernel says when it has found something wrong with itself."""

STALL = re.compile(r"rcu: .*stall|blocked for more than")
"""The same of time: on a busy host it may be the host's doing."""

# What is younger than five seconds does not count as leaked.
SELF_CHECK = """\
dmesg
leaks=/sys/kernel/debug/kmemleak
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
if [ -e $leaks ]; then
    for scan in 1 2; do sleep 6; echo scan >$leaks; done
    cat $leaks
fi
"""

# The shell itself must not go out to a store that it is about to start. The loads may, in a group
# that has less memory than they want.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin /run /cg
/bin/busybox --install -s
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /cg
echo +memory >/cg/cgroup.subtree_control
mkdir /cg/shell /cg/load
echo 0 >/cg/shell/memory.swap.max
echo $$ >/cg/shell/cgroup.procs
echo 48M >/cg/load/memory.max
mount -t ext4 /dev/vda /root
mkswap /dev/vdb >/dev/null
K=/sys/class/misc/kztmem/stats
F=/sys/kernel/mm/frontswap
C=/sys/kernel/mm/cleancache
say() { echo "@ $*"; }
load() { sh -c 'echo 0 >/cg/load/cgroup.procs; exec "$@" 2>/dev/null' sh "$@"; }
store() {
    before=$(cat $K/sessions)
    /store ${2:-20000} $1 &
    STORE=$!
    while [ "$(cat $K/sessions)" = "$before" ]; do sleep 0.1; done
}
anon() {
    load /kzt-load anon --size ${1:-64}MiB --content text --passes ${2:-1} --json >/report
    say anon $? "$(cat /report)"
}
files() {
    load /kzt-load files --folder /root/f --size 80MiB --seconds ${1:-5} --json >/report
    say files $? "$(cat /report)"
}
pgpgin() { sed -n 's/^pgpgin //p' /proc/vmstat; }
until_more() { while [ "$(cat $2)" -le $1 ]; do sleep 0.1; done; }
until_none() {
    for second in 1 2 3 4 5 6 7 8 9; do
        [ "$(cat $1)" = 0 ] || sleep 1
    done
}
insmod /kztmem.ko
swapon /dev/vdb
. /script
. /self-check
say end
poweroff -f
"""


@dataclass(frozen=True)
class Console:
    """What a script has said, and all that was on the console."""

    said: list[str]
    text: str

    def of(self, word: str) -> list[str]:
        """The rest of the lines that begin with this word."""
        return [line.removeprefix(word).strip() for line in self.said if line.startswith(word)]


def added(path: str) -> str:
    """A file that the series adds, as the patch that makes it has it."""
    for patch in sorted((REPOSITORY / "images/kernel/patches").iterdir()):
        _, found, rest = patch.read_text().partition(f"--- /dev/null\n+++ b/{path}\n")
        if found:
            lines = itertools.takewhile(lambda line: line[:1] in "@+", rest.splitlines())
            return "".join(f"{line[1:]}\n" for line in lines if line.startswith("+"))
    raise FileNotFoundError(path)


def built(name: str, folder: Path) -> Path:
    """A program of the selftest, static; what it includes of the module comes out of the series."""
    headers = folder / "include"
    for source in MODULE:
        text = added(f"drivers/misc/kztmem/{source}")
        (folder / source).write_text(text)
        for header in re.findall(r"#include <(linux/(?!types).*)>", text):
            _write(headers / header, "")  # kernel.h has it all
    _write(headers / "uapi/linux/kztmem.h", added(HEADER))
    command: list[str | Path] = ["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-sign-compare", "-Wno-unused-parameter", f"-I{headers}", f"-I{folder}"]
    subprocess.run([*command, "-o", folder / name, SELFTEST / f"{name}.c"], check=True)
    return folder / name


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_disk(path: Path, content: Path | None = None, block: int = 4096) -> None:
    """A disk with a file system of such blocks, which has what the folder `content` has."""
    with path.open("wb") as file:
        file.truncate(512 << 20)
    command: list[str | Path] = [find("mke2fs") or "mke2fs", "-q", "-t", "ext4", "-b", f"{block}"]
    command += ["-O", "^has_journal", "-E", "lazy_itable_init=0"]
    if content:
        command += ["-d", content]
    subprocess.run([*command, path], check=True)


def blocks_of(disk: Path, file: str) -> list[int]:
    """Where the blocks of a file are on a disk."""
    command = [find("debugfs") or "debugfs", "-R", f"blocks {file}", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(block) for block in done.stdout.split()]


def run(
    image: Image,
    store: Path,
    script: str,
    folder: Path,
    *,
    memory: int = 320,
    cmdline: str = "",
    files: tuple[Path, ...] = (),
) -> Console:
    """Boot, run the script, and return when the guest has switched itself off.

    The disk is the one in `folder` if there is one. The kernel must not have had anything to
    complain of.
    """
    kernel = recipe(image.name).linux
    assert kernel is not None
    if kernel.debug:
        memory = max(memory, ROOM_TO_CHECK)
    modules = linux.ensure(kernel, Places.default(), lambda _step, _seconds: None) / "modules"
    archive = Archive()
    archive.file("init", INIT.encode(), 0o755)
    archive.file("script", script.encode())
    archive.file("self-check", SELF_CHECK.encode())
    archive.file("store", store.read_bytes(), 0o755)
    archive.file("kzt-load", (BUILT / "kzt-load").read_bytes(), 0o755)
    for module in ("kztmem.ko", "zram.ko"):
        archive.file(module, next(modules.glob(f"*/kernel/{module}")).read_bytes())
    for path in files:
        archive.file(path.name, path.read_bytes(), 0o755)
    # Behind the image's own, which has busybox.
    (folder / "initrd").write_bytes(image.initrd.read_bytes() + archive.finish())
    command: list[str | Path] = ["qemu-system-x86_64", "-accel", "tcg,thread=multi"]
    command += ["-cpu", "max,-erms,-fsrm", "-m", str(memory), "-smp", "2", "-nodefaults"]
    command += ["-display", "none", "-no-reboot", "-kernel", image.kernel]
    command += ["-initrd", folder / "initrd", "-serial", f"file:{folder}/console"]
    options = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off log_buf_len=1M"
    command += ["-append", f"{options} {cmdline}"]
    if not (folder / "disk").exists():
        make_disk(folder / "disk")
    with (folder / "swap").open("wb") as file:
        file.truncate(512 << 20)
    for name in ("disk", "swap"):
        command += ["-drive", f"file={folder}/{name},format=raw,if=none,id={name},cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive={name}"]
    account = Places.default().account()
    same = account.pw_uid == os.getuid()
    for path in (folder, *folder.iterdir()):
        Places.default().own(path)
    subprocess.run(
        command,
        check=True,
        user=None if same else account.pw_uid,
        group=None if same else account.pw_gid,
        extra_groups=None if same else [],
    )
    text = (folder / "console").read_text(errors="replace")
    said = [line[2:].rstrip() for line in text.splitlines() if line.startswith("@ ")]
    print(text)  # a failed test shows it
    assert said[-1:] == ["end"], text
    assert not COMPLAINT.search(text), text
    assert not kernel.debug or not STALL.search(text), text
    return Console(said, text)
