# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell scripts that run a workload in a guest, and end one.

Each workload gets a control group of its own below the guest's workload group: the group's
`memory.max` keeps it below the guest's RAM, and `cgroup.kill` ends it with all its children.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kztlab.spec import AnonSpec, WorkloadSpec

KZT_LOAD = "kzt-load"


def anon(spec: AnonSpec) -> list[str]:
    """The command line of kzt-load for the built-in memory workload."""
    return [
        KZT_LOAD,
        "anon",
        f"--size={spec.size}",
        f"--content={spec.content}",
        f"--passes={spec.passes}",
        f"--access={spec.access}",
        f"--seed={spec.seed}",
        f"--corpus={spec.corpus}",
        "--json",
    ]


def start(workload: WorkloadSpec, group: str) -> str:
    """A script that runs the workload in its control group, with the workload's exit status.

    Whatever an interrupted kztlab left running there is ended first.
    """
    command = ["sh", "-c", workload.command] if workload.command else []
    if workload.anon:
        command = anon(workload.anon)
    folder = shlex.quote(f"{group}/{workload.name}")
    # 0 is whoever writes it; $$ would be the login shell, of which this may be a subshell
    return f"{end(workload, group)} && echo 0 >{folder}/cgroup.procs && exec {shlex.join(command)}"


def end(workload: WorkloadSpec, group: str) -> str:
    """A script that ends the workload and returns once nothing of it is left."""
    folder = shlex.quote(f"{group}/{workload.name}")
    return (
        f"mkdir -p {folder} && echo 1 >{folder}/cgroup.kill"
        f" && while grep -q 'populated 1' {folder}/cgroup.events; do sleep 0.1; done"
    )
