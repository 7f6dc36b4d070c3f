# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM or emulation: told by a test boot, because nothing else tells.

A host may have /dev/kvm, libvirt may call it fine, and guests hang all the same (nested
virtualization is often like that). So the kernel and initrd that are to be used are booted once
under KVM; the result is kept for as long as nothing that it depends on has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from kztlab.errors import HostUnable
from kztlab.hypervisor import console
from kztlab.hypervisor.model import AcceleratorKind, Domain

if TYPE_CHECKING:
    from kztlab.hypervisor.connection import Hypervisor
    from kztlab.places import Places

BOOT_LIMIT_SECONDS = 20.0
"""How long the test boot may take to reach user space; a working KVM needs about one second."""

_MEMORY = 192 << 20
_POLL_SECONDS = 0.1
_DEVICE = Path("/dev/kvm")

_USER_SPACE_SIGN = "kztlab: ["
"""On the console: the init of our images has begun."""


class Bootable(Protocol):
    """What is booted: an `Image` is one."""

    @property
    def kernel(self) -> Path: ...
    @property
    def initrd(self) -> Path: ...
    @property
    def cmdline(self) -> str: ...


class Accelerator(NamedTuple):
    """What guests run on, and why."""

    kind: AcceleratorKind
    reason: str


def accelerator(
    hypervisor: Hypervisor,
    places: Places,
    image: Bootable,
    wanted: Literal["auto", "kvm", "tcg"] = "auto",
) -> Accelerator:
    """What to run guests of `image` on.

    Raises `HostUnable` if KVM is wanted and this user has none; never for `auto`.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "asked for")
    obstacle = _obstacle(places)
    if wanted == "kvm":
        if obstacle:
            raise HostUnable(f"KVM cannot be used: {obstacle}", hint="--accel tcg emulates")
        return Accelerator("kvm", "asked for")
    if obstacle:
        return Accelerator("tcg", obstacle)
    return _remembered(hypervisor, places, image)


def _obstacle(places: Places) -> str | None:
    """Why the user that QEMU runs as cannot use KVM, as far as the device tells."""
    if not _DEVICE.exists():
        return f"there is no {_DEVICE}"
    if not places.may(_DEVICE, os.R_OK | os.W_OK):
        return f"{_DEVICE} is closed to the user {places.account().pw_name}"
    return None


def _remembered(hypervisor: Hypervisor, places: Places, image: Bootable) -> Accelerator:
    cache = places.folder(places.cache / "accelerator") / f"{_key(hypervisor, places, image)}.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):  # unknown, or damaged
        known = json.loads(cache.read_text())
        return Accelerator("kvm" if known["kind"] == "kvm" else "tcg", known["reason"])
    try:
        found = boots_under_kvm(hypervisor, places, image)
    except HostUnable as error:
        # Not to be remembered: what was missing, such as memory, may be there the next time.
        return Accelerator("tcg", f"a test boot under KVM failed: {error.message}")
    unfinished = cache.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(found._asdict()))
    unfinished.replace(cache)
    return found


def _key(hypervisor: Hypervisor, places: Places, image: Bootable) -> str:
    """A name for all that a test boot's result depends on."""
    device, host = _DEVICE.stat(), os.uname()
    digest = hashlib.sha256()
    for path in (image.kernel, image.initrd):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    facts = (
        hypervisor.qemu_version(),
        host.release,
        host.version,
        (device.st_rdev, device.st_uid, device.st_gid, device.st_mode),
        places.account().pw_name,
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:32]


def boots_under_kvm(hypervisor: Hypervisor, places: Places, image: Bootable) -> Accelerator:
    """Boot `image` without its disk under KVM, and see whether it reaches user space.

    Raises `HostUnable` if it cannot even be started.
    """
    guest = f"probe-{os.getpid()}"
    domain = Domain(
        lab="kvm-probe",
        guest=guest,
        memory=_MEMORY,
        vcpus=1,
        accelerator="kvm",
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=image.cmdline,
        console_log=places.folder(places.cache / "accelerator") / f"{guest}.log",
    )
    begin = time.monotonic()
    try:
        state = hypervisor.start(domain, ephemeral=True)
        while (elapsed := time.monotonic() - begin) < BOOT_LIMIT_SECONDS:
            if _USER_SPACE_SIGN in console.text(domain.console_log):
                return Accelerator("kvm", f"a test boot took {elapsed:.1f} s")
            departure = hypervisor.departure(state)
            if departure is not None:
                return Accelerator("tcg", f"the guest of a test boot under KVM {departure.detail}")
            time.sleep(_POLL_SECONDS)
    finally:
        hypervisor.destroy(domain.lab, domain.guest)
        domain.console_log.unlink(missing_ok=True)
    return Accelerator("tcg", f"a test boot under KVM hung for {BOOT_LIMIT_SECONDS:.0f} s")
