# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's and QEMU's errors, told so that the user knows what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.hypervisor.model import NbdSwap, RelayPorts, VhostSwap

if TYPE_CHECKING:
    from pathlib import Path

    import libvirt

    from kztlab.hypervisor.model import Domain

_PORT_TAKEN = "Could not set up host forwarding rule"

_NOISE = re.compile(
    r"^internal error: |process exited while connecting to monitor: "
    r"|qemu unexpectedly closed the monitor: |[-0-9]{10}T[:.0-9]+Z "
)

_NO_MONITOR = "failed to connect to monitor socket"

_HINTS = (
    (_NO_MONITOR, "QEMU ended at once, time and again; libvirt's log of this guest has its words"),
    ("Could not access KVM", "kvm is not usable here: use --accel tcg"),
    ("failed to initialize kvm", "kvm is not usable here: use --accel tcg"),
    ("cannot set up guest memory", "the host has too little free memory for this guest"),
    ("Cannot allocate memory", "the host has too little free memory for this guest"),
    ("No space left on device", "the disk is full"),
    ("Permission denied", "QEMU runs as the user that owns the lab: it must be able to read this"),
    ("Failed to connect socket", "is libvirtd running, and may this user use it?"),
    ("emulator", "is qemu-system-x86 installed?"),
)


def translated(error: libvirt.libvirtError, doing: str) -> HostUnable:
    """The error as one for the user; `doing` completes "cannot ..."."""
    text = _words(error)
    hint = next((hint for sign, hint in _HINTS if sign in text), None)
    return HostUnable(f"cannot {doing}: {text}", hint=hint)


def is_port_taken(error: libvirt.libvirtError) -> bool:
    """Whether QEMU could not have the port for the SSH forward."""
    return _PORT_TAKEN in _words(error)


def is_unexplained(error: libvirt.libvirtError) -> bool:
    """Whether QEMU ended before libvirt could ask it why: the next try may tell, or succeed."""
    return _NO_MONITOR in _words(error)


def start_failure(error: libvirt.libvirtError, domain: Domain, ssh_port: int) -> HostUnable:
    """Why this guest did not start."""
    text = _words(error)
    who = f"the guest {domain.guest} of lab {domain.lab}"
    if _PORT_TAKEN in text:
        return HostUnable(
            f"cannot start {who}: port {ssh_port} of 127.0.0.1 is taken",
            hint="give it another one, or none for any free one",
        )
    for socket in _sockets(domain):
        if str(socket) in text:
            return HostUnable(
                f"cannot start {who}: its store does not answer at {socket}",
                hint="is kztmemd running?",
            )
    return translated(error, f"start {who}")


def _sockets(domain: Domain) -> list[Path]:
    """The store's sockets that QEMU connects to."""
    match domain.swap:
        case NbdSwap(socket):
            return [socket]
        case RelayPorts(relay, ctl):
            return [relay, ctl]
        case VhostSwap(socket):
            return [socket]
        case _:
            return []


def _words(error: libvirt.libvirtError) -> str:
    """libvirt's message on one line, without the noise around QEMU's own words."""
    text = _NOISE.sub("", error.get_error_message() or str(error))
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
