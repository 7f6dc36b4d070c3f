# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's agent says of its guest: JSON that nobody has to believe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kztmem._core import Report


def guest(report: Report | None) -> dict[str, Any] | None:
    """A client's last report as the API shows it; None if there is none that can be shown."""
    stats = None if report is None else parse(report["content"])
    if report is None or stats is None:
        return None
    return {"age_seconds": report["age_seconds"], "stats": stats}


def parse(content: bytes) -> dict[str, Any] | None:
    """A JSON object that can be written down as JSON again, or None."""
    try:
        stats = json.loads(content)
        # Python reads more than it may write: lone surrogates, infinity, numbers of any length.
        json.dumps(stats, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return stats if isinstance(stats, dict) else None
