# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is to the hypervisor, before and while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

Swap: TypeAlias = "NbdSwap | DiskSwap | RelayPorts | TmemSwap | VhostSwap"

AcceleratorKind = Literal["kvm", "tcg"]

SWAP_SERIAL = "kztswap0"
"""The serial number by which a guest finds its swap device, whatever the kernel names it."""


@dataclass(frozen=True, slots=True)
class NbdSwap:
    """A swap device kept by the store: QEMU is the NBD client, the guest sees a virtio disk."""

    socket: Path
    export: str = "swap"


@dataclass(frozen=True, slots=True)
class DiskSwap:
    """A swap device in a raw file on the host, cache=writeback."""

    path: Path


@dataclass(frozen=True, slots=True)
class RelayPorts:
    """A swap device kept by the store, which an agent in the guest relays over virtio-serial."""

    relay: Path
    """The store's socket behind the port that carries pages."""
    ctl: Path
    """The store's socket behind the port that carries the agent's reports."""


@dataclass(frozen=True, slots=True)
class TmemSwap:
    """Pools kept by the store, which the guest's kernel asks over virtio-serial before its disk."""

    disk: DiskSwap
    """The swap device, which gets what the store refuses."""
    tmem: Path
    """The store's socket behind the port that carries the kernel's frames."""
    ctl: Path
    """The store's socket behind the port that carries the agent's reports."""


@dataclass(frozen=True, slots=True)
class VhostSwap:
    """A swap device kept by the store, which serves the guest's virtio queues itself.

    It sees the guest's memory: QEMU shares all of it.
    """

    socket: Path


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest to be started. The paths are the host's that runs libvirt."""

    lab: str
    guest: str
    memory: int
    """Bytes."""
    vcpus: int
    accelerator: AcceleratorKind
    kernel: Path
    initrd: Path
    cmdline: str
    """The image's part; the console and panic settings are added to it."""
    console_log: Path
    """Written anew by this start."""
    frontend: str = "none"
    disk: Path | None = None
    """The root disk, qcow2: the guest's own overlay over an image."""
    swap: Swap | None = None
    ssh_port: int | None = None
    """Port on 127.0.0.1 that leads to the guest's 22; None takes a free one."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """A guest that libvirt knows, be it this process or another that started it."""

    lab: str
    guest: str
    uuid: str
    state: str
    """libvirt's word: running, paused, shutdown, ..."""
    accelerator: str
    frontend: str
    ssh_port: int
    console_log: Path


@dataclass(frozen=True, slots=True)
class Departure:
    """Why a guest is not there any more, or does not go on."""

    kind: Literal["panic", "shutdown", "destroyed", "killed", "paused", "unknown"]
    detail: str
    """A sentence's predicate: "panicked: Attempted to kill init!"."""
