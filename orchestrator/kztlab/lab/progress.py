# SPDX-License-Identifier: GPL-2.0-or-later
"""What a long command tells while it works; the command line decides how to show it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from several threads at once."""

    def step(
        self, subject: str, step: str, elapsed: float = 0.0, limit: float | None = None
    ) -> None:
        """`subject` (a guest, the image, the store) is at `step`, for `elapsed` of `limit` s."""

    def done(self, subject: str, outcome: str, *, ok: bool = True) -> None:
        """`subject` has come to an end, good or bad."""

    def note(self, message: str) -> None:
        """Something worth a line."""
