# SPDX-License-Identifier: GPL-2.0-or-later
"""What a workload came to. A guest's words are checked, never believed."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.guest import Completed

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Byte = Annotated[int, Field(ge=0, le=255)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sentence = Annotated[str, Field(pattern="^[ -~]{1,200}$")]

SIGNALLED = 128
"""A shell's exit status for a command that signal N ended is this plus N."""

OUTPUT_KEPT = 2000
"""Characters of a workload's output that are kept: the end, where programs say what went wrong."""


class WrongPage(BaseModel):
    """A page that did not hold what had been written there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pass_: Annotated[int, Field(alias="pass", ge=0)]
    address: Annotated[str, Field(pattern="^0x[0-9a-f]{1,16}$")]
    """Of its first wrong byte, as the next three."""
    offset: Count
    expected: Byte
    found: Byte
    wrong_bytes: Count
    holds: Sentence
    """What is there: zeros, another page's content, an earlier one, or the bytes it begins with."""

    def __str__(self) -> str:
        return (
            f"pass {self.pass_}, address {self.address}, offset {self.offset:#x}: "
            f"expected {self.expected:#04x}, found {self.found:#04x}; "
            f"{self.wrong_bytes} bytes wrong, the page holds {self.holds}"
        )


class Report(BaseModel):
    """What kzt-load prints, whatever it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ok: bool
    bad_pages: Count
    seconds: Seconds


class LoadReport(Report):
    """What `kzt-load anon` prints."""

    pages: Count
    passes: Count
    fill_seconds: Seconds
    longest_access_seconds: Seconds
    pswpin: Count | None
    pswpout: Count | None
    errors: Annotated[list[WrongPage], Field(max_length=16)]

    def wrong(self) -> str | None:
        """What to say of wrong pages, if there are any."""
        return _wrong(self.bad_pages, self.pages, self.errors)


class FilesReport(Report):
    """What `kzt-load files` prints."""

    operations: Count
    pages_read: Count
    pages_written: Count
    longest_operation_seconds: Seconds
    errors: Annotated[list[Sentence], Field(max_length=8 * 64)]
    """Eight of each process."""

    def wrong(self) -> str | None:
        """What to say of wrong pages, if there are any."""
        return _wrong(self.bad_pages, self.pages_read, self.errors)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One workload on one guest, ended one way or another."""

    workload: str
    guest: str
    started: float
    """On the host's monotonic clock, as `ended`: the window in which its swap traffic counts."""
    ended: float
    failure: str | None = None
    """Why it counts as failed, in one line."""
    lost: bool = False
    """It failed because the guest went away under it."""
    report: LoadReport | FilesReport | None = None
    output: str = ""
    """The end of what it printed, unless that was a report."""

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def seconds(self) -> float:
        """kzt-load's own time where it tells one, else the host's around the command."""
        return self.report.seconds if self.report else self.ended - self.started

    @property
    def bad_pages(self) -> int | None:
        return self.report.bad_pages if self.report else None


def judge_load(
    kind: type[LoadReport | FilesReport], done: Completed
) -> tuple[LoadReport | FilesReport | None, str | None]:
    """kzt-load's report and, if the run was not a good one, why."""
    try:
        report = kind.model_validate_json(done.stdout)
    except ValidationError as error:
        problem = f"printed no report: {error.errors()[0]['msg']}"
        return None, f"kzt-load {problem if done.exit == 0 else _ending(done)}"
    if wrong := report.wrong():
        return report, wrong
    if done.exit or not report.ok:
        return report, f"kzt-load {_ending(done)}"
    return report, None


def judge_command(done: Completed) -> str | None:
    """Why a command's run was not a good one."""
    return f"the command {_ending(done)}" if done.exit else None


def tail(text: str) -> str:
    """The end of a text, where programs say what went wrong."""
    return text if len(text) <= OUTPUT_KEPT else f"…{text[-OUTPUT_KEPT:]}"


def _wrong(bad: int, pages: int, errors: Sequence[object]) -> str | None:
    first = f", the first: {errors[0]}" if errors else ""
    return f"{bad} of {pages} pages were wrong{first}" if bad else None


def _ending(done: Completed) -> str:
    """How it ended, and the last thing it said."""
    how = f"ended with exit code {done.exit}"
    if done.exit > SIGNALLED:
        number = done.exit - SIGNALLED
        how = f"was killed by signal {number}"
        if number == signal.SIGKILL:
            how += ", perhaps for lack of memory: see the console"
    lines = done.stderr.strip().splitlines()
    return f"{how}: {lines[-1][:200]}" if lines else how
