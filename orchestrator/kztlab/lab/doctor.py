# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host has to have, one named requirement each, with the remedy where it is missing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from kztlab import image
from kztlab.errors import HostUnable, KztlabError
from kztlab.places import Places
from kztlab.programs import find
from kztlab.spec import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Purpose = Literal["guests", "store", "images", "ssh", "disk", "shm"]
"""What a requirement is for. `disk` and `shm` are about room for a lab that is still to come."""

SHM_WANTED = 256 << 20
"""Many containers give /dev/shm 64 MiB, which holds no store worth the name."""

DISK_WANTED = 2 << 30
"""One image and the overlays of a few guests."""


class Missing(Exception):  # noqa: N818
    """A requirement is not met; says how so. `package`: the Debian package that has it."""

    def __init__(self, message: str, *, package: str | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.package = package
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Requirement:
    name: str
    purpose: Purpose
    check: Callable[[], str]
    """What was found, or raises `Missing`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement, looked at."""

    name: str
    purpose: Purpose
    ok: bool
    detail: str
    package: str | None
    remedy: str | None


def examine(purposes: Iterable[Purpose] = get_args(Purpose)) -> list[Finding]:
    """Look at every requirement for these purposes."""
    wanted = set(purposes)
    return [_find(each) for each in _requirements() if each.purpose in wanted]


def demand(purposes: Iterable[Purpose]) -> None:
    """Raise `HostUnable` that names everything that is missing for these purposes, at once."""
    missing = [finding for finding in examine(purposes) if not finding.ok]
    if missing:
        raise HostUnable(
            "this host lacks " + "; ".join(f"{each.name}: {each.detail}" for each in missing),
            hint="; ".join(remedies(missing)),
        )


def remedies(findings: Sequence[Finding]) -> list[str]:
    """What to do about all of them: one apt line for the packages, then the rest."""
    packages = sorted({each.package for each in findings if each.package})
    lines = [apt_line(packages)] if packages else []
    return lines + [each.remedy for each in findings if each.remedy and not each.package]


def apt_line(packages: Sequence[str]) -> str:
    sudo = "" if os.getuid() == 0 else "sudo "
    return f"{sudo}apt-get install --no-install-recommends {' '.join(packages)}"


def program(name: str) -> Path | None:
    """A program on PATH, in the folders for daemons, or beside this Python."""
    found = find(name, str(Path(sys.executable).parent))
    return Path(found) if found else None


def _find(requirement: Requirement) -> Finding:
    try:
        detail = requirement.check()
    except Missing as missing:
        return Finding(
            requirement.name,
            requirement.purpose,
            ok=False,
            detail=str(missing),
            package=missing.package,
            remedy=missing.remedy or (apt_line([missing.package]) if missing.package else None),
        )
    return Finding(requirement.name, requirement.purpose, True, detail, None, None)


def _requirements() -> list[Requirement]:
    found = [
        Requirement("QEMU", "guests", _packaged("qemu-system-x86_64", "qemu-system-x86")),
        Requirement("qemu-img", "guests", _packaged("qemu-img", "qemu-utils")),
        Requirement("libvirt", "guests", _packaged("libvirtd", "libvirt-daemon")),
        Requirement("libvirt's QEMU driver", "guests", _qemu_driver),
        Requirement("kztmemd", "store", _kztmemd),
        Requirement("shared memory", "shm", _shared_memory),
        Requirement("state folder", "disk", _state_folder),
        Requirement("ssh", "ssh", _packaged("ssh", "openssh-client")),
        Requirement("Debian's keys", "images", _keyring),
    ]
    known = {each.name for each in found}
    found += [
        Requirement(name, "images", _packaged(name, package))
        for name, package in image.NEEDED.items()
        if name not in known
    ]
    if os.getuid() == 0:
        found.append(Requirement("service user", "guests", _service_user))
    return found


def _packaged(name: str, package: str) -> Callable[[], str]:
    def check() -> str:
        found = program(name)
        if found is None:
            raise Missing(f"no program {name}", package=package)
        return str(found)

    return check


def _qemu_driver() -> str:
    for library in sorted(Path("/usr/lib").glob("*/libvirt/connection-driver")):
        driver = library / "libvirt_driver_qemu.so"
        if driver.exists():
            return str(driver)
    raise Missing("libvirt cannot drive QEMU", package="libvirt-daemon-driver-qemu")


def _keyring() -> str:
    if not Path(image.KEYRING).exists():
        raise Missing(f"no {image.KEYRING}", package="debian-archive-keyring")
    return image.KEYRING


def _kztmemd() -> str:
    found = program("kztmemd")
    if found is None:
        raise Missing("no program kztmemd", remedy="install host-backend beside kztlab: ./dev demo")
    return str(found)


def _shared_memory() -> str:
    try:
        info = os.statvfs("/dev/shm")  # noqa: S108
    except OSError as error:
        raise Missing(str(error), remedy="mount -t tmpfs tmpfs /dev/shm") from error
    free = info.f_bavail * info.f_frsize
    if free < SHM_WANTED:
        raise Missing(
            f"{free >> 20} MiB free, a store wants {SHM_WANTED >> 20} MiB or more",
            remedy="mount -o remount,size=2G /dev/shm (a container: --shm-size=2g)",
        )
    return f"{format_size(free >> 20 << 20)} free"


def _state_folder() -> str:
    places = _places()
    folder = next(each for each in (places.state, *places.state.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if free < DISK_WANTED:
        raise Missing(
            f"{free >> 20} MiB free in {places.state}, at least {DISK_WANTED >> 20} MiB are wanted",
            remedy=f"make room in {places.state}, or set KZTLAB_STATE to another folder",
        )
    return str(places.state)


def _service_user() -> str:
    return _places().account().pw_name


def _places() -> Places:
    try:
        return Places.default()
    except KztlabError as error:
        raise Missing(error.message, remedy=error.hint or "") from error
