# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts on stdout: JSON when asked for, a table on a terminal, tab-free plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def emit(data: object) -> None:
    """Print one JSON value, on one line when a program reads it."""
    print(json.dumps(data, indent=2 if sys.stdout.isatty() else None, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            shown.add_column(column)
        for row in cells:
            shown.add_row(*row)
        Console().print(shown)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(padded).rstrip())


def _text(cell: object) -> str:
    return "-" if cell is None else str(cell)
