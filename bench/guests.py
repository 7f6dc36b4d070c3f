# SPDX-License-Identifier: GPL-2.0-or-later
"""The same verifying workload in a guest that swaps to the store, to a disk or to its own zram."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

FRONTENDS = ("vhost-user-blk", "nbd", "relay", "disk", "zram")
BASELINES = ("disk", "zram")

SPEC = """\
lab: bench-{frontend}
store: {{memory: 512MiB}}
guests:
  vm: {{memory: 192MiB, vcpus: {vcpus}, frontend: {frontend}, swap: 1GiB}}
workloads:
  - {{name: load, on: [vm], anon: {{size: {size}, content: text, passes: 2}}, timeout: 20min}}
"""


@dataclass(frozen=True)
class Load:
    """What every guest has to do, and with how many processors."""

    size: str = "208MiB"
    vcpus: int = 1


@dataclass(frozen=True)
class Figure:
    """What one frontend took for the workload, in the order of the runs."""

    frontend: str
    seconds: list[float]
    swapped_pages: list[int]
    """Pages that went out and came in, by the guest's own count."""

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


def run_once(frontend: str, load: Load) -> tuple[float, int]:
    """Boot a guest, run the workload, and return its seconds and the pages swapped."""
    with tempfile.NamedTemporaryFile("w", prefix="kztbench-", suffix=".yaml") as spec:
        spec.write(SPEC.format(frontend=frontend, size=load.size, vcpus=load.vcpus))
        spec.flush()
        done = subprocess.run(
            [Path(sys.executable).with_name("kztlab"), "run", spec.name, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"kztlab run over {frontend} ended with {done.returncode}")
    guest = json.loads(done.stdout.splitlines()[-1])["guests"][0]
    return (
        float(guest["workloads"][0]["seconds"]),
        int(guest["swapped_out_pages"]) + int(guest["swapped_in_pages"]),
    )


def compare(
    load: Load, frontends: Sequence[str], repetitions: int, progress: Callable[[str], None]
) -> list[Figure]:
    """Run the workload over each frontend in turn, as often as asked."""
    seconds: dict[str, list[float]] = {frontend: [] for frontend in frontends}
    pages: dict[str, list[int]] = {frontend: [] for frontend in frontends}
    for repetition in range(repetitions):
        for frontend in frontends:
            progress(f"{repetition + 1}/{repetitions}: a guest swaps over {frontend}")
            took, swapped = run_once(frontend, load)
            seconds[frontend].append(took)
            pages[frontend].append(swapped)
    return [Figure(name, seconds[name], pages[name]) for name in frontends]
