# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU processes of a lab's guests, as the host sees them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kztlab.places import Places

_NAME = re.compile(rb"guest=kzt-([0-9a-f]{8})-([a-z][a-z0-9-]*),")
"""How libvirt tells QEMU the domain's name, which `Hypervisor` makes of the lab's id and guest."""


def guests(places: Places, lab: str) -> dict[str, int]:
    """The process id of each running guest's QEMU, by the guest's name."""
    wanted = places.lab_id(lab).encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            named = _NAME.search(path.read_bytes())
            if named and named[1] == wanted:
                found[named[2].decode()] = int(path.parent.name)
    return found
