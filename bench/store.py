# SPDX-License-Identifier: GPL-2.0-or-later
"""The store beside its bare codec and the host's zram: `kztlab bench store` on three corpora."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.corpora import CORPORA

THREADS = (1, 2)


@dataclass(frozen=True)
class Figures:
    """What `kztlab bench store` says of one corpus."""

    corpus: str
    rows: list[dict[str, Any]]

    def find(self, engine: str, threads: int = 1) -> dict[str, Any] | None:
        """The warm row of an engine."""
        wanted = (engine, threads, True)
        keys = ("engine", "threads", "warm")
        return next((row for row in self.rows if tuple(map(row.get, keys)) == wanted), None)


def compare(codec: str, repetitions: int, progress: Callable[[str], None]) -> list[Figures]:
    """Measure every corpus."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="kztbench-") as name:
        folder = Path(name)
        folder.chmod(0o733)  # QEMU writes the guest's memory as a user of its own
        for corpus, make in CORPORA.items():
            pages = make(folder, progress)
            progress(f"measuring {corpus}")
            figures.append(Figures(corpus, _measure(pages, codec, repetitions)))
    return figures


def _measure(pages: Path, codec: str, repetitions: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("kztlab"), "bench", "store", pages, "--json"),
            *("--codec", codec, "--repetitions", str(repetitions)),
            *("--threads", ",".join(map(str, THREADS))),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
