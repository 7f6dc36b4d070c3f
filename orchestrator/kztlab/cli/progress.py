# SPDX-License-Identifier: GPL-2.0-or-later
"""How a long command's progress is shown: live on a terminal, a line per step elsewhere.

It goes to stderr, so that stdout is the command's result alone.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from kztlab.lab.progress import Progress


@contextmanager
def showing(args: argparse.Namespace) -> Iterator[Progress]:
    """The progress for this command: live if a person is watching stderr."""
    if sys.stderr.isatty() and not args.debug:
        display = _Live()
        with Live(
            console=Console(stderr=True), get_renderable=display.render, refresh_per_second=8
        ) as live:
            display.console = live.console
            yield display
    else:
        yield _Lines()


class _Lines:
    """A line whenever a subject comes to another step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._steps: dict[str, str] = {}

    def step(
        self, subject: str, step: str, elapsed: float = 0.0, limit: float | None = None
    ) -> None:
        del elapsed, limit
        with self._lock:
            if self._steps.get(subject) != step:
                self._steps[subject] = step
                self._say(f"{subject}: {step}")

    def done(self, subject: str, outcome: str, *, ok: bool = True) -> None:
        with self._lock:
            self._steps[subject] = outcome
            self._say(f"{subject}: {outcome}" if ok else f"{subject}: FAILED: {outcome}")

    def note(self, message: str) -> None:
        with self._lock:
            self._say(message)

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f}] {line}", file=sys.stderr, flush=True)


class _Live:
    """A row per subject: a spinner while it works, a mark once it is done."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._lock = threading.Lock()
        self._working: dict[str, tuple[str, float, float | None]] = {}
        self._ended: dict[str, tuple[str, bool]] = {}
        self._spinner = Spinner("dots")

    def step(
        self, subject: str, step: str, elapsed: float = 0.0, limit: float | None = None
    ) -> None:
        with self._lock:
            self._ended.pop(subject, None)
            self._working[subject] = (step, time.monotonic() - elapsed, limit)

    def done(self, subject: str, outcome: str, *, ok: bool = True) -> None:
        with self._lock:
            self._working.pop(subject, None)
            self._ended[subject] = (outcome, ok)

    def note(self, message: str) -> None:
        self.console.print(message, markup=False, highlight=False)

    def render(self) -> Group:
        rows = Table.grid(padding=(0, 1))
        with self._lock:
            for subject, (outcome, ok) in self._ended.items():
                mark = Text("✓", "green") if ok else Text("✗", "red")
                rows.add_row(mark, Text(subject, "bold"), Text(outcome), "")
            for subject, (step, since, limit) in self._working.items():
                elapsed = time.monotonic() - since
                clock = f"{elapsed:.0f} s" + (f" of {limit:.0f} s" if limit else "")
                rows.add_row(self._spinner, Text(subject, "bold"), Text(step), Text(clock, "dim"))
        return Group(rows)
