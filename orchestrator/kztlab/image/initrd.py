# SPDX-License-Identifier: GPL-2.0-or-later
"""The initrd of an image, and what a lab puts behind it.

Linux unpacks any number of cpio archives one after the other, so a lab's initrd is the image's with
one more archive appended; /init finds the lab's files under /kztlab and copies them to
/run/kztlab of the running system.
"""

from __future__ import annotations

import lzma
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.image.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kztlab.image.cache import Image

_APPLETS = ("cp", "insmod", "mkdir", "mount", "sh", "sleep", "switch_root")


def build(*, init: bytes, busybox: bytes, modules: Path, wanted: Iterable[str]) -> bytes:
    """The image's initrd, uncompressed: unpacking would cost the guest more than it saves the host.

    `modules` is a folder as in /lib/modules/VERSION, with its modules.dep.
    """
    archive = Archive()
    for folder in ("bin", "dev", "proc", "sys", "root", "modules", "kztlab"):
        archive.folder(folder)
    archive.file("init", init, 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in _APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    dependencies = (modules / "modules.dep").read_text()
    for position, path in enumerate(load_order(dependencies, wanted)):
        name = PurePosixPath(path).name.removesuffix(".xz")
        content = (modules / path).read_bytes()
        if path.endswith(".xz"):  # busybox's insmod knows no compression
            content = lzma.decompress(content)
        archive.file(f"modules/{position:02}-{name}", content)
    return archive.finish()


def load_order(dependencies: str, wanted: Iterable[str]) -> list[str]:
    """Paths of the wanted modules and all they need, each after what it depends on.

    `dependencies` is the text of modules.dep: `path: nearest-dependency ... farthest`.
    Raises `HostUnable` for a module that the kernel does not have.
    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        paths[PurePosixPath(path).name.partition(".")[0].replace("-", "_")] = path
    order: dict[str, None] = {}  # a set that keeps its order
    for name in wanted:
        if name not in paths:
            raise HostUnable(f"the image's kernel has no module {name}")
        path = paths[name]
        order.update(dict.fromkeys([*reversed(needs[path]), path]))
    return list(order)


def lab_initrd(image: Image, lab_dir: Path, *, authorized_key: str, host_key: str) -> Path:
    """Write the lab's initrd to `lab_dir` and return its path.

    `authorized_key` is one line of an OpenSSH public key, `host_key` the text of an OpenSSH ed25519
    private key. The file is as secret as the key in it, hence its mode.
    """
    archive = Archive()
    archive.folder("kztlab")
    archive.file("kztlab/ssh_host_ed25519_key", _lines(host_key), 0o600)
    archive.file("kztlab/authorized_keys", _lines(authorized_key), 0o600)
    path = lab_dir / "initrd.img"
    unfinished = path.with_suffix(".tmp")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(image.initrd.read_bytes())
        out.write(archive.finish())
    return unfinished.replace(path)


def _lines(text: str) -> bytes:
    return text.rstrip("\n").encode() + b"\n"
