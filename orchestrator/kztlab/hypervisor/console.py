# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's console log: what it said last, and whether it panicked.

The guest writes what it likes there, so nothing of it reaches a terminal uncleaned and no more than
the end is ever read.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_TAIL_BYTES = 64 * 1024

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]|c)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PANIC = re.compile(r"Kernel panic - not syncing: ?(.*)")


def clean(text: str) -> str:
    """`text` without terminal escapes and control characters other than tab and line feed."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def text(log: Path, limit: int = _TAIL_BYTES) -> str:
    """The last `limit` bytes of a console log, cleaned; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            return clean(file.read(limit).decode(errors="replace"))
    except FileNotFoundError:
        return ""


def tail(log: Path, lines: int = 20) -> list[str]:
    """The last lines of a console log that say something.

    Of a panic they are those around its beginning: what led to it says more than its stack trace.
    """
    said = [line.rstrip() for line in text(log).splitlines() if line.strip()]
    panics = (number for number, line in enumerate(said) if _PANIC.search(line))
    first = next(panics, len(said))
    return said[: first + lines // 2][-lines:]


def panic(log: Path) -> str | None:
    """The reason of a kernel panic, if the console shows one."""
    found = _PANIC.search(text(log))
    return (found[1].strip() or "no reason given") if found else None
