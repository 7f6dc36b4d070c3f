# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's port that is taken from it while it swaps, and given back."""

from __future__ import annotations

import contextlib
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import libvirt
from tests.support.swapping import PAGES_BETWEEN

from kztlab.hypervisor import Hypervisor, session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.swapping import Swapper


def wait_for_the_next_port(guest: Swapper, port: str, size: str) -> None:
    """A load stops while the guest's port is not there, and goes on by another one of that name."""
    with guest.loading(size, passes=2) as load:
        # It reads what only the store has: while it writes, a guest may have a disk to swap to.
        guest.wait_more(load, PAGES_BETWEEN, "gets")
        with unplugged(guest, port):
            time.sleep(1)
            before = guest.client()["counters"]
            time.sleep(5)
            after = guest.client()["counters"]
            assert (before["puts"], before["gets"]) == (after["puts"], after["gets"])
            assert load.running
        guest.wait_more(load, PAGES_BETWEEN, "gets")
        load.report()


@contextlib.contextmanager
def unplugged(guest: Swapper, port: str) -> Iterator[None]:
    """The guest's port of that name is not there meanwhile."""
    places = guest.kztlab.places
    with Hypervisor(places) as hypervisor:
        found = hypervisor.find(guest.lab, guest.guest)
    assert found is not None
    connection = libvirt.open(session.uri(places))
    domain = connection.lookupByUUIDString(found.uuid)
    (device,) = (
        ET.tostring(channel, encoding="unicode")
        for channel in ET.fromstring(domain.XMLDesc()).iter("channel")
        if channel.find(f"target[@name='{port}']") is not None
    )
    domain.detachDevice(device)
    while port in domain.XMLDesc():
        time.sleep(0.1)
    try:
        yield
    finally:
        domain.attachDevice(device)
        connection.close()
