# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell script that runs a workload in a guest.

Each workload gets a control group of its own below the guest's workload group: the group's
`memory.max` keeps it below the guest's RAM, and `cgroup.kill` ends it with all its children.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kztlab.spec import AnonSpec, FilesSpec, WorkloadSpec

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


def files(spec: FilesSpec, folder: str) -> list[str]:
    """The command line of kzt-load for the built-in workload on files."""
    return [
        KZT_LOAD,
        "files",
        f"--folder={folder}",
        f"--size={spec.size}",
        f"--files={spec.files}",
        f"--processes={spec.processes}",
        f"--seconds={spec.duration:.0f}",
        f"--seed={spec.seed}",
        "--json",
    ]


def start(workload: WorkloadSpec, group: str) -> str:
    """A script that runs the workload in its control group, with the workload's exit status.

    Whatever a killed kztlab left running there is ended first.
    """
    task = ["sh", "-c", workload.command] if workload.command else []
    if workload.anon:
        task = anon(workload.anon)
    if workload.files:
        task = files(workload.files, workload.name)
    return f"""\
set -e
cd {shlex.quote(group)}
mkdir -p {workload.name}
cd {workload.name}
echo 1 >cgroup.kill
while grep -q 'populated 1' cgroup.events; do sleep 0.1; done
echo 0 >cgroup.procs  # 0 stands for whoever writes it
cd /root
exec {shlex.join(task)}"""
