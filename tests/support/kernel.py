# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots the guest kernel with a store of its own behind /dev/kztmem, and runs a script there.

No agent, port or host has a part in it: images/kernel/selftest/store.c is the store, and misbehaves
as it is told.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kztlab.image import linux
from kztlab.image.cache import BUILT
from kztlab.image.cpio import Archive
from kztlab.image.recipe import REPOSITORY, recipe
from kztlab.places import Places
from kztlab.programs import find

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.image import Image

SELFTEST = REPOSITORY / "images/kernel/selftest/store.c"
HEADER = "include/uapi/linux/kztmem.h"

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
    /store 20000 $1 &
    STORE=$!
    while [ "$(cat $K/sessions)" = "$before" ]; do sleep 0.1; done
}
anon() {
    load /kzt-load anon --size 64MiB --content text --json >/report
    say anon $? "$(cat /report)"
}
files() {
    load /kzt-load files --folder /root/f --size 80MiB --seconds ${1:-5} --json >/report
    say files $? "$(cat /report)"
}
pgpgin() { sed -n 's/^pgpgin //p' /proc/vmstat; }
insmod /kztmem.ko
swapon /dev/vdb
. /script
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


def built_store(folder: Path) -> Path:
    """The store, as a static program; its header comes out of the series."""
    for patch in sorted((REPOSITORY / "images/kernel/patches").iterdir()):
        text = patch.read_text()
        if HEADER in text:
            added = text[text.index(f"+++ b/{HEADER}") :].splitlines()[2:]
            lines = [line[1:] for line in added if line.startswith("+")]
            (folder / "linux").mkdir()
            (folder / "linux/kztmem.h").write_text("\n".join(lines) + "\n")
            break
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", f"-I{folder}"]
    subprocess.run([*command, "-o", folder / "store", SELFTEST], check=True)
    return folder / "store"


def run(image: Image, store: Path, script: str, folder: Path, memory: int = 320) -> Console:
    """Boot, run the script, and return when the guest has switched itself off."""
    kernel = recipe(image.name).linux
    assert kernel is not None
    modules = linux.ensure(kernel, Places.default(), lambda _step, _seconds: None) / "modules"
    archive = Archive()
    archive.file("init", INIT.encode(), 0o755)
    archive.file("script", script.encode())
    archive.file("store", store.read_bytes(), 0o755)
    archive.file("kzt-load", (BUILT / "kzt-load").read_bytes(), 0o755)
    archive.file("kztmem.ko", next(modules.glob("*/kernel/kztmem.ko")).read_bytes())
    # Behind the image's own, which has busybox.
    (folder / "initrd").write_bytes(image.initrd.read_bytes() + archive.finish())
    command: list[str | Path] = ["qemu-system-x86_64", "-accel", "tcg,thread=multi"]
    command += ["-cpu", "max,-erms,-fsrm", "-m", str(memory), "-smp", "2", "-nodefaults"]
    command += ["-display", "none", "-no-reboot", "-kernel", image.kernel]
    command += ["-initrd", folder / "initrd", "-serial", f"file:{folder}/console"]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    for name in ("disk", "swap"):
        with (folder / name).open("wb") as file:
            file.truncate(512 << 20)
        if name == "disk":
            make = [find("mke2fs") or "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal"]
            subprocess.run([*make, "-E", "lazy_itable_init=0", folder / name], check=True)
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
    assert said[-1:] == ["end"], text
    return Console(said, text)
