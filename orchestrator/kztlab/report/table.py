# SPDX-License-Identifier: GPL-2.0-or-later
"""The summary as a table, for terminals, logs and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from kztlab.report.summary import GuestResult, Summary, WorkloadResult

NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether its cells are figures, and what it means."""

    heading: str
    figures: bool
    meaning: str


COLUMNS = (
    Column("guest", figures=False, meaning="Name of the guest."),
    Column("frontend", figures=False, meaning="Where it swaps to."),
    Column("workloads", figures=False, meaning="What ran, whether it passed, and its time."),
    Column("bad", figures=True, meaning="Pages that did not hold what was written to them."),
    Column(
        "pages out",
        figures=True,
        meaning="Pages swapped out while workloads ran (pswpout), and as a share of their load.",
    ),
    Column(
        "pages in",
        figures=True,
        meaning="Pages swapped in while workloads ran (pswpin), and as a share of their load.",
    ),
    Column("stored", figures=True, meaning="Most pages held in the store at once."),
    Column("MiB", figures=True, meaning="Most memory they took in the store."),
    Column("ratio", figures=True, meaning="Size of the stored pages over the memory they took."),
)


def rows(summary: Summary) -> list[list[str]]:
    """A row of cells for each guest."""
    return [_row(guest) for guest in summary.guests]


def print_summary(summary: Summary, stream: TextIO) -> None:
    """Prints the table: drawn on a terminal, aligned lines elsewhere."""
    if stream.isatty():
        _draw(summary, stream)
        return
    cells = [[column.heading for column in COLUMNS], *rows(summary)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(COLUMNS))]
    for row in cells:
        aligned = (
            cell.rjust(width) if column.figures else cell.ljust(width)
            for cell, width, column in zip(row, widths, COLUMNS, strict=True)
        )
        stream.write("  ".join(aligned).rstrip() + "\n")


def _draw(summary: Summary, stream: TextIO) -> None:
    from rich import box  # noqa: PLC0415 -- costs time that only a terminal is worth
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=0, show_edge=False
    )
    for column in COLUMNS:
        table.add_column(
            column.heading,
            justify="right" if column.figures else "left",
            # On a narrow terminal, this is the column that gives way.
            no_wrap=column.heading != "workloads",
            min_width=10 if column.heading == "workloads" else None,
        )
    for guest, row in zip(summary.guests, rows(summary), strict=True):
        bad = any(not workload.ok for workload in guest.workloads)
        table.add_row(*map(Text, row), style="red" if bad else None)
    Console(file=stream).print(table)


def _row(guest: GuestResult) -> list[str]:
    known = [each.bad_pages for each in guest.workloads if each.bad_pages is not None]
    return [
        guest.name,
        guest.frontend,
        ", ".join(map(_outcome, guest.workloads)) or NONE,
        count(sum(known) if known else None),
        _shared(guest.swapped_out_pages, guest.load_pages),
        _shared(guest.swapped_in_pages, guest.load_pages),
        count(guest.stored_pages),
        NONE if guest.stored_bytes is None else f"{guest.stored_bytes / (1 << 20):,.1f}",
        NONE if guest.ratio is None else f"{guest.ratio:.2f}",
    ]


def _outcome(workload: WorkloadResult) -> str:
    return f"{workload.name} {'ok' if workload.ok else 'FAILED'} {workload.seconds:.1f}s"


def _shared(pages: int | None, load: int) -> str:
    return count(pages) if pages is None or not load else f"{count(pages)} ({share(pages, load)})"


def count(value: int | None) -> str:
    """``12,345``"""
    return NONE if value is None else f"{value:,}"


def share(part: int | None, whole: int) -> str:
    """``45%``"""
    return NONE if part is None or not whole else f"{part / whole:.0%}"
