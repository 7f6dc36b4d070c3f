# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests as virtual machines, through libvirt.

```
with Hypervisor.connect(places) as hypervisor:
    kind, why = accelerator(hypervisor, places, image)
    guest = hypervisor.start(Domain(..., accelerator=kind))
    hypervisor.list("quickstart")
    hypervisor.departure(guest)  # None, or why it is gone
    hypervisor.destroy("quickstart", "web-1")
```
"""

from kztlab.hypervisor.capabilities import vhost_user_obstacle
from kztlab.hypervisor.connection import Hypervisor
from kztlab.hypervisor.model import (
    SWAP_SERIAL,
    AcceleratorKind,
    Departure,
    DiskSwap,
    Domain,
    GuestState,
    NbdSwap,
    RelayPorts,
    Swap,
    TmemSwap,
    VhostSwap,
)
from kztlab.hypervisor.probe import Accelerator, accelerator

__all__ = [
    "SWAP_SERIAL",
    "Accelerator",
    "AcceleratorKind",
    "Departure",
    "DiskSwap",
    "Domain",
    "GuestState",
    "Hypervisor",
    "NbdSwap",
    "RelayPorts",
    "Swap",
    "TmemSwap",
    "VhostSwap",
    "accelerator",
    "vhost_user_obstacle",
]
