# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab of guests that are measured from outside while they work."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kztlab.hypervisor import Hypervisor
from kztlab.places import Places

KZTLAB = Path(sys.executable).with_name("kztlab")


@dataclass(frozen=True)
class Lab:
    """A lab that is up."""

    name: str
    places: Places
    hypervisor: Hypervisor

    def start(self, guest: str, script: str) -> subprocess.Popen[str]:
        """A shell script in a guest, its standard input and output at hand."""
        return subprocess.Popen(
            [KZTLAB, "exec", f"{self.name}/{guest}", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, guest: str, script: str) -> str:
        """What a shell script in a guest prints; raises `RuntimeError` if it fails."""
        with self.start(guest, script) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{guest} ended {script!r} with {process.returncode}: {output}")
        return output

    def qmp(self, guest: str, command: str, **arguments: Any) -> Any:  # noqa: ANN401
        """What a guest's QEMU returns."""
        return self.hypervisor.qmp(self.name, guest, command, **arguments)


@contextmanager
def running(name: str, spec: str) -> Iterator[Lab]:
    """Bring a lab up from its cluster.yaml, and down in the end."""
    places = Places.default()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kztbench-", suffix=".yaml") as file:
            file.write(spec)
            file.flush()
            subprocess.run([KZTLAB, "up", file.name], stdout=subprocess.DEVNULL, check=True)
        with Hypervisor.connect(places) as hypervisor:
            yield Lab(name, places, hypervisor)
    finally:
        subprocess.run([KZTLAB, "down", name], stdout=subprocess.DEVNULL, check=True)
