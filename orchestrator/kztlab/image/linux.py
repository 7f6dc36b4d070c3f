# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest kernels built from Debian's source of Linux, with or without our series of patches.

The folder of such a kernel has `kernel.toml`, a script `build` whose steps are run here, and what
they use. The result is cached as images are, under `kernels/HASH`: `vmlinuz-RELEASE` (an ELF file)
and `modules/RELEASE`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, HostUnable
from kztlab.image.folders import alone, appearing
from kztlab.image.hashing import digest
from kztlab.image.workshop import check_room, workshop
from kztlab.programs import find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.image.runner import Progress
    from kztlab.places import Places

FORMAT = 1
"""Raised when this module makes another kernel from the same folder."""

NEEDED = {  # program or file: Debian's package
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "patch": "patch",
    "strip": "binutils",
    "xz": "xz-utils",
    "/usr/include/gelf.h": "libelf-dev",
}

DEBUG = "KZTLAB_KERNEL_DEBUG"
"""The variable that names files of a kernel's folder debug/, such as `lockdep,kasan`."""

_ROOM_TO_BUILD = 2048 << 20
_ROOM_TO_KEEP = 128 << 20


@dataclass(frozen=True, slots=True)
class Linux:
    """A kernel.toml, and the folder it lies in."""

    folder: Path
    package: str
    """Debian's package of sources."""
    pinned: str
    """The version of Linux that the patches are tested on."""
    accepted: tuple[str, ...]
    """Those that they apply to."""
    lines: int
    """About as many are printed by a build."""
    patched: bool = True
    """Whether it has the series, patches/; without, it is what to compare with."""
    debug: tuple[str, ...] = ()
    """What of debug/ is added to its configuration, for a kernel that checks itself."""

    def fragments(self) -> list[Path]:
        """What is added to its config."""
        series = [self.folder / "patches/config"] if self.patched else []
        return series + [self.folder / "debug" / f"{name}.config" for name in self.debug]

    def digest(self) -> str:
        """The cache key: all files that the kernel is made of."""
        own = (path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".md")
        named = {str(path.relative_to(self.folder)): path for path in sorted(own)}
        used = self.fragments()
        unused = ("debug/", "selftest/") if self.patched else ("debug/", "selftest/", "patches/")
        made_of = [
            (name, path)
            for name, path in named.items()
            if path in used or not name.startswith(unused)
        ]
        return digest(f"{FORMAT}", made_of)

    def choose(self, offered: Sequence[str]) -> str:
        """The Debian version to build of those that apt offers: the pinned one if it is there.

        Raises `HostUnable` if the patches are known to apply to none.
        """
        for wanted in (self.pinned, *sorted(self.accepted, key=_numbers, reverse=True)):
            for version in offered:
                if version.partition("-")[0] == wanted:
                    return version
        if not offered:
            raise HostUnable(
                f"apt knows no package {self.package}",
                hint="on Debian 12 it comes from bookworm-security; try: apt-get update",
            )
        raise HostUnable(
            f"the kernel's patches are for Linux {', '.join(self.accepted)}, "
            f"apt offers {', '.join(offered)}",
            hint=f"see docs/kernel.md: add a version to {self.folder}/kernel.toml once they apply",
        )


def read_linux(folder: Path, *, patched: bool = True) -> Linux:
    """The kernel that the folder describes; raises `BadInput` for what it has no fragment of."""
    text = tomllib.loads((folder / "kernel.toml").read_text())
    debug = tuple(filter(None, os.environ.get(DEBUG, "").split(",")))
    known = sorted(path.stem for path in (folder / "debug").glob("*.config"))
    if unknown := sorted({*debug} - {*known}):
        raise BadInput(
            f"{DEBUG}: no such kernel fragment: {', '.join(unknown)}",
            hint=f"there are: {', '.join(known)}",
        )
    accepted = tuple(text.pop("accepted"))
    return Linux(folder=folder, accepted=accepted, patched=patched, debug=debug, **text)


def ensure(linux: Linux, places: Places, progress: Progress) -> Path:
    """The folder of the kernel, which is built if the cache does not have it.

    Raises `HostUnable` if it can't be; nothing half-made is left then.
    """
    home = places.folder(places.kernels, 0o755)
    final = home / linux.digest()
    if final.is_dir():
        return final
    with alone(home, progress, "kernel"):
        if not final.is_dir():
            check_host(home)
            with appearing(final) as unfinished:
                _build(linux, unfinished, places, progress)
    return final


def check_host(home: Path) -> None:
    """Raise `HostUnable` for what is missing, all at once and with the command that brings it."""
    missing = [
        package
        for need, package in NEEDED.items()
        if not (Path(need).exists() if need.startswith("/") else find(need))
    ]
    if missing:
        raise HostUnable(
            f"building the guest kernel needs {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    check_room(_ROOM_TO_BUILD, _ROOM_TO_KEEP, home, "a kernel")


def _build(linux: Linux, into: Path, places: Places, progress: Progress) -> None:
    began = time.monotonic()
    version = linux.choose(_offered(linux.package))
    name = f"Linux {version.partition('-')[0]}"
    with workshop(places, progress) as run:
        recipe, result = run.folder / "recipe", run.folder / "result"
        shutil.copytree(linux.folder, recipe)
        recipe.chmod(0o755)
        for path in recipe.rglob("*"):  # the repository may be closed to the build's user
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        script = str(recipe / "build")
        jobs = str(len(os.sched_getaffinity(0)))
        fetch = ["apt-get", "download", f"{linux.package}={version}"]
        run.step(f"downloading the source of {name}", fetch)
        (source,) = run.folder.glob(f"{linux.package}_*.deb")
        run.step(f"unpacking {name}", [script, "unpack", str(source)])
        if linux.patched:
            run.step(f"patching {name}", [script, "patch"])
        fragments = [str(recipe / path.relative_to(linux.folder)) for path in linux.fragments()]
        run.step(f"configuring {name}", [script, "configure", *fragments])
        run.step(f"compiling {name}", [script, "compile", jobs], lines=linux.lines)
        run.step(f"collecting {name}", [script, "collect", str(result)])
        shutil.copytree(result, into, dirs_exist_ok=True)
    about = {"version": version, "seconds": round(time.monotonic() - began, 1)}
    (into / "kernel.json").write_text(json.dumps(about, indent=2) + "\n")


def _offered(package: str) -> list[str]:
    """The versions of a package that apt could download, newest first."""
    asked = subprocess.run(
        ["apt-cache", "madison", package], capture_output=True, text=True, check=False
    )
    fields = (line.split("|") for line in asked.stdout.splitlines())
    return [parts[1].strip() for parts in fields if len(parts) > 1 and "Sources" not in parts[2]]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
