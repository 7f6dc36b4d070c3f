# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host's QEMU can do for a guest, asked of libvirt and of QEMU itself."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from kztlab.hypervisor.connection import Hypervisor
    from kztlab.places import Places

_DEVICE = "vhost-user-blk-pci"
_ANSWER_SECONDS = 30


def vhost_user_obstacle(hypervisor: Hypervisor, places: Places) -> str | None:
    """Why guests cannot have their queues served by the store; None if they can."""
    found = ET.fromstring(hypervisor.capabilities())  # noqa: S314 -- from libvirt
    sources = found.findall("memoryBacking/enum[@name='sourceType']/value")
    if "memfd" not in {source.text for source in sources}:
        return "libvirt cannot share a guest's memory as a memfd"
    emulator = found.findtext("path", "")
    if f'"{_DEVICE}"' not in _devices(emulator, places):
        return f"{emulator} has no device {_DEVICE}"
    return None


def _devices(emulator: str, places: Places) -> str:
    """QEMU's list of its devices; empty if it gives none. QEMU never runs as root."""
    account = places.account() if os.getuid() == 0 else None
    try:
        return subprocess.run(
            [emulator, "-device", "help"],
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
