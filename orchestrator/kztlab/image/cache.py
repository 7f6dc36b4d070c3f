# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of images: `images/NAME/HASH/`, complete or not there at all.

A build fills a folder with a leading dot, and its renaming makes the image. HASH covers all that
goes into the image, so that one is never updated: another recipe is another image, and guests
that still run on the old one keep it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, HostUnable
from kztlab.image import linux
from kztlab.image.build import build, check_host
from kztlab.image.folders import alone, appearing, vanish
from kztlab.image.recipe import REPOSITORY, Recipe, recipe, recipes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.image.runner import Progress
    from kztlab.places import Places

BUILT = REPOSITORY / "target/agent/x86_64-unknown-linux-gnu/agent"
"""Where `dev` builds the guests' static programs; KZTLAB_GUEST_PROGRAMS names another folder."""

PROGRAMS = ("kzt-agent", "kzt-load")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the cache. Its files are never written to."""

    name: str
    hash: str
    kernel: Path
    """An ELF vmlinux, which QEMU starts by its PVH entry."""
    initrd: Path
    """Boots only with a lab's keys behind it: `lab_initrd`."""
    disk: Path
    """qcow2, the backing file of guests' overlays."""
    cmdline: str
    """To be followed by `kztlab.hostname=NAME`."""

    @property
    def folder(self) -> Path:
        return self.disk.parent

    @property
    def size(self) -> int:
        """Bytes taken in the cache."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())


def ensure(name: str, places: Places, progress: Progress) -> Image:
    """The image `name` as its recipe is now, built if the cache does not have it.

    Of several commands that want it, one builds and the others wait. Raises `BadInput` for an
    unknown name, `HostUnable` if it cannot be built; nothing half-made is left then, nor when
    interrupted.
    """
    wanted = recipe(name)
    programs = _programs(Path(os.environ.get("KZTLAB_GUEST_PROGRAMS") or BUILT))
    home = places.folder(places.folder(places.images, 0o755) / name, 0o755)
    final = home / wanted.digest(*programs)
    if final.is_dir():
        return _open(wanted.name, final)
    with alone(home, progress, "image"):
        if not final.is_dir():
            check_host(home)
            _make(wanted, programs, final, places, progress)
    return _open(wanted.name, final)


def list_images(places: Places) -> list[Image]:
    """Everything in the cache, whatever its recipe says now."""
    folders = sorted(places.images.glob("*/[0-9a-f]*/image.json"))
    return [_open(path.parts[-3], path.parent) for path in folders]


def remove(name: str, places: Places) -> list[Image]:
    """Remove all builds of an image; returns what was removed.

    The caller makes sure that no lab uses it. Raises `BadInput` if there is none.
    """
    gone = [image for image in list_images(places) if image.name == name]
    if not gone:
        known = sorted({*recipes(), *(image.name for image in list_images(places))})
        raise BadInput(f"the cache has no image {name}", hint=f"images: {', '.join(known)}")
    for image in gone:
        vanish(image.folder)
    return gone


def _programs(folder: Path) -> list[Path]:
    programs = [folder / name for name in PROGRAMS]
    for program in programs:
        if not program.is_file():
            raise HostUnable(
                f"the guests' {program.name} has not been built: there is no {program}",
                hint="./dev setup builds it, as do ./dev demo and ./dev test",
            )
    return programs


def _make(
    wanted: Recipe, programs: Sequence[Path], final: Path, places: Places, progress: Progress
) -> None:
    began = time.monotonic()
    built = linux.ensure(wanted.linux, places, progress) if wanted.linux else None
    with appearing(final) as unfinished:
        build(wanted, programs, unfinished, places, progress, linux=built)
        about = {"cmdline": wanted.cmdline, "seconds": round(time.monotonic() - began, 1)}
        (unfinished / "image.json").write_text(json.dumps(about, indent=2) + "\n")


def _open(name: str, folder: Path) -> Image:
    about = json.loads((folder / "image.json").read_text())
    return Image(
        name=name,
        hash=folder.name,
        kernel=folder / "vmlinux",
        initrd=folder / "initrd.img",
        disk=folder / "disk.qcow2",
        cmdline=about["cmdline"],
    )
