# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds an image from its recipe: packages, root disk, kernel, initrd.

    mmdebstrap -> a directory -> mke2fs -d -> raw -> qcow2

No file system is mounted on the host and nothing is root outside a user namespace (see `runner`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.image import initrd, kernel
from kztlab.image.sources import (
    KEYRING,
    for_suite,
    host_sources,
    host_transport,
    sources_list,
)
from kztlab.image.workshop import check_room, workshop
from kztlab.programs import find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.image.recipe import Recipe
    from kztlab.image.runner import Progress
    from kztlab.places import Places

NEEDED = {  # program: Debian's package
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "zstd": "zstd",
}
_ROOM_TO_BUILD = 1536 << 20
_ROOM_TO_KEEP = 512 << 20


def check_host(images: Path) -> None:
    """Raise `HostUnable` for what is missing, all at once and with the command that brings it."""
    missing = [package for program, package in NEEDED.items() if not find(program)]
    if not Path(KEYRING).exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise HostUnable(
            f"building an image needs {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    check_room(_ROOM_TO_BUILD, _ROOM_TO_KEEP, images, "an image")


def build(
    recipe: Recipe,
    programs: Sequence[Path],
    into: Path,
    places: Places,
    progress: Progress,
    *,
    linux: Path | None = None,
) -> None:
    """Fill the folder `into` with disk.qcow2, vmlinux and initrd.img.

    `programs` are those of ours that the recipe puts into the system; `linux` has a kernel that was
    built from source, in place of a package's.
    """
    with workshop(places, progress) as run:
        stage = run.folder / "stage"
        _stage(recipe, programs, linux, stage)
        sources = run.folder / "sources.list"
        sources.write_text(sources_list(for_suite(host_sources(), recipe.suite)))
        sources.chmod(0o644)

        tree = run.folder / "tree"
        bootstrap = [
            "mmdebstrap",
            f"--mode={run.mode}",
            f"--variant={recipe.variant}",
            f"--architectures={recipe.architecture}",
            "--format=directory",
            f"--include={','.join(recipe.packages)}",
            *(f"--aptopt={line}" for line in host_transport()),
            *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
            f'--customize-hook=KZT_KERNEL={recipe.kernel} {stage}/customize "$1"',
            recipe.suite,
            str(tree),
            str(sources),
        ]
        run.step("installing packages", bootstrap)
        run.step("making the root disk", [f"{stage}/pack", recipe.disk, str(tree)], inside=True)

        raw, disk = str(tree / "disk.raw"), run.folder / "disk.qcow2"
        run.step("converting the root disk", ["qemu-img", "convert", "-O", "qcow2", raw, str(disk)])
        shutil.copyfile(disk, into / "disk.qcow2")
        progress("making kernel and initrd", 0.0)
        (into / "vmlinux").write_bytes(kernel.vmlinux((tree / "vmlinuz").read_bytes()))
        archive = initrd.build(
            init=(stage / "initrd-init").read_bytes(),
            busybox=(tree / "busybox").read_bytes(),
            modules=tree / "modules",
            wanted=recipe.initrd_modules,
        )
        (into / "initrd.img").write_bytes(archive)


def _stage(recipe: Recipe, programs: Sequence[Path], linux: Path | None, stage: Path) -> None:
    """Copy what the namespace's root has to read: the repository may be closed to it."""
    if linux:
        shutil.copytree(linux, stage / "linux")
    for name, source in recipe.sources():
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    for program in programs:
        shutil.copyfile(program, stage / program.name)
    for folder in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
