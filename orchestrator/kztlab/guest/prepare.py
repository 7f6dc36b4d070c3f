# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a guest that has booted ready for workloads: its swap, and the cgroup they run in.

The work is done by prepare.sh, sent over SSH: the guest needs nothing of ours.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from kztlab.errors import GuestLost
from kztlab.guest.shell import CommandTimeout
from kztlab.hypervisor import SWAP_SERIAL
from kztlab.spec.consistency import WORKLOAD_HEADROOM

if TYPE_CHECKING:
    from kztlab.guest.readiness import Progress
    from kztlab.guest.shell import Shell
    from kztlab.spec import GuestSpec

WORKLOAD_GROUP = "/sys/fs/cgroup/kztlab"
"""The guest's control group that workloads run in, limited below the guest's RAM."""

STEP_SECONDS = 120.0
"""What one step may take: mkswap and swapon write little, but a crowded host is slow."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the guest is like now, in its own words."""

    device: str
    """Its swap device; empty without one."""
    swap_bytes: int
    algorithm: str
    """How the guest compresses; empty where it does not."""
    memory_max: int
    """Bytes that workloads may use of the guest's RAM."""


def prepare(shell: Shell, spec: GuestSpec, *, progress: Progress) -> Prepared:
    """Set the guest up as `spec` says; what is so already is left alone.

    Raises `GuestLost` with the guest's own words if a step does not succeed.
    """
    steps = {
        "swap on": ["swap", spec.frontend, SWAP_SERIAL, str(spec.swap_size)],
        "cgroup": [
            "cgroup",
            WORKLOAD_GROUP,
            str(spec.workload_memory_max or 0),
            str(WORKLOAD_HEADROOM),
        ],
    }
    script = files("kztlab.guest").joinpath("prepare.sh").read_text()
    facts: dict[str, str] = {}
    begin = time.monotonic()
    for step, arguments in steps.items():
        waiting = partial(_tell, progress, step, begin)
        waiting()
        command = f"sh -s -- {shlex.join(arguments)}"
        try:
            done = shell.run(command, input=script, timeout=STEP_SECONDS, waiting=waiting)
        except CommandTimeout as error:
            took = f"step '{step}' took over {STEP_SECONDS:.0f} s"
            raise GuestLost(f"the guest could not be prepared: {took}") from error
        if done.exit:
            said = done.stderr.strip() or f"exit status {done.exit}"
            raise GuestLost(f"the guest could not be prepared: step '{step}': {said}")
        facts |= _facts(done.stdout)
    try:
        return Prepared(
            device=facts["device"],
            swap_bytes=int(facts.get("swap_bytes", 0)),
            algorithm=facts.get("algorithm", ""),
            memory_max=int(facts["memory_max"]),
        )
    except (KeyError, ValueError) as error:
        raise GuestLost(f"the guest's answer makes no sense: {facts}") from error


def _tell(progress: Progress, step: str, begin: float) -> None:
    progress(step, time.monotonic() - begin, STEP_SECONDS)


def _facts(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
