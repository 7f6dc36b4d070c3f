# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is up, shared by all tests that leave it as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kztlab.guest import Shell, wait_ready
from kztlab.hypervisor import DiskSwap, GuestState, Hypervisor
from kztlab.image import Image, lab_initrd
from kztlab.lab.keys import Keys
from tests.conftest import Machines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.places import Places

SWAP = 256 << 20


@dataclass(frozen=True)
class Ready:
    """A guest with a swap disk of `SWAP` bytes, booted and not prepared."""

    hypervisor: Hypervisor
    guest: GuestState
    keys: Keys
    shell: Shell


def boot(machines: Machines, guest: str) -> Ready:
    """Boot the image as it is meant to be, and log in."""
    keys = Keys.of(machines.folder / "keys")
    initrd = lab_initrd(
        machines.image,
        machines.folder,
        authorized_key=keys.authorized_key,
        host_key=keys.host.read_text(),
    )
    machines.places.own(initrd)
    state = machines.start(
        guest,
        initrd=initrd,
        memory=192 << 20,
        disk=machines.overlay(guest),
        swap=DiskSwap(machines.raw(f"{guest}.swap", SWAP)),
    )
    shell = wait_ready(machines.hypervisor, state, keys, limit=240, progress=lambda *_: None)
    return Ready(machines.hypervisor, state, keys, shell)


@pytest.fixture(scope="session")
def ready(hypervisor: Hypervisor, places: Places, image: Image) -> Iterator[Ready]:
    lab = Machines(hypervisor, places, image, "ready")
    booted = boot(lab, "ready")
    with booted.shell:
        yield booted
    lab.end()


@pytest.fixture
def doomed(machines: Machines) -> Ready:
    """A guest of the test's own, to be done with as it likes."""
    return boot(machines, "doomed")
