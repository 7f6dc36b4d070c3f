# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples on disk: one JSON object a line, unbuffered, so that a run that dies keeps them all.

A sample has ``mono`` (the host's monotonic clock, seconds: what intervals are computed from) and
``wall`` (Unix time, for people). A line with ``gap`` instead of values says why there are none from
there on.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Sample = dict[str, Any]


class Recorder:
    """Appends samples to one file. Safe to close while its sampler is still writing."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("ab", buffering=0)  # each line is out at once and whole
        self._lock = threading.Lock()
        self._gap: str | None = None

    def write(self, values: Mapping[str, object]) -> None:
        """Appends a sample taken now."""
        self._gap = None
        self._append(values)

    def gap(self, reason: str) -> None:
        """Notes that there is no sample; the same reason again and again is noted once."""
        if reason != self._gap:
            self._gap = reason
            self._append({"gap": reason})

    def close(self) -> None:
        """Ends the file. What a sampler still writes is dropped."""
        with self._lock:
            self._stream.close()

    def _append(self, values: Mapping[str, object]) -> None:
        stamp = {"mono": round(time.monotonic(), 3), "wall": round(time.time(), 3)}
        line = json.dumps(stamp | dict(values), separators=(",", ":"))
        with self._lock:
            if not self._stream.closed:
                self._stream.write(line.encode() + b"\n")


def read_samples(path: Path) -> list[Sample]:
    """All samples and gaps of a file, in order. A last line cut short by a crash is left out; a
    file that is not there holds none."""
    samples: list[Sample] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return samples
    for line in text.splitlines():
        try:
            sample = json.loads(line)
        except ValueError:
            continue
        if isinstance(sample, dict) and isinstance(sample.get("mono"), int | float):
            samples.append(sample)
    return samples
