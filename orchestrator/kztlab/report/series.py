# SPDX-License-Identifier: GPL-2.0-or-later
"""Time series out of samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kztlab.observe import Sample

_MISSED = 3.5
"""Intervals without a sample that make a gap: fewer are a busy machine."""

Window = tuple[float, float]
"""Start and end on the host's monotonic clock, seconds."""


@dataclass(frozen=True)
class Series:
    """Values over time (monotonic seconds); `None` is a gap."""

    times: list[float]
    values: list[float | None]

    def points(self) -> list[tuple[float, float]]:
        """The values that are there, with their times."""
        return [
            (time, value)
            for time, value in zip(self.times, self.values, strict=True)
            if value is not None
        ]

    def peak(self) -> float | None:
        """The largest value."""
        return max((value for _, value in self.points()), default=None)

    def rate(self) -> Series:
        """Per-second rates of a counter, each at the end of its interval; a gap where the counter
        has one or was reset."""
        values: list[float | None] = [None]
        for (before, low), (after, high) in pairwise(zip(self.times, self.values, strict=True)):
            if low is None or high is None or high < low or after <= before:
                values.append(None)
            else:
                values.append((high - low) / (after - before))
        return Series(self.times, values[: len(self.times)])

    def increase(self, windows: Iterable[Window]) -> float | None:
        """How much a counter grew within the windows, from the last value at or before each start
        to the first at or after its end. A counter that was reset started from zero again.
        `None` without a single value."""
        points = self.points()
        if not points:
            return None
        return sum(_increase(points, window) for window in merged(windows))


def extract(samples: Sequence[Sample], value: Callable[[Sample], float], interval: float) -> Series:
    """The series of a value; samples that do not have it, and times without samples, are gaps."""
    series = Series([], [])
    for sample in samples:
        if series.times and sample["mono"] - series.times[-1] > _MISSED * interval:
            series.times.append(series.times[-1] + interval)
            series.values.append(None)
        series.times.append(sample["mono"])
        try:
            series.values.append(value(sample))
        except (KeyError, TypeError, ZeroDivisionError):
            series.values.append(None)
    return series


def merged(windows: Iterable[Window]) -> list[Window]:
    """The same stretches of time, none of them counted twice."""
    union: list[Window] = []
    for start, end in sorted(windows):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def _increase(points: list[tuple[float, float]], window: Window) -> float:
    start, end = window
    first = max((index for index, (time, _) in enumerate(points) if time <= start), default=0)
    last = min(
        (index for index, (time, _) in enumerate(points) if time >= end), default=len(points) - 1
    )
    counts = [value for _, value in points[first : last + 1]]
    return sum(high - low if high >= low else high for low, high in pairwise(counts))


@dataclass(frozen=True)
class Gap:
    """Time without samples, and why."""

    start: float
    end: float
    reason: str


def gaps(samples: Sequence[Sample], interval: float) -> list[Gap]:
    """From the last sample before to the first one after each gap, noted or not."""
    found: list[Gap] = []
    last: float | None = None
    reason: str | None = None
    for sample in samples:
        now = sample["mono"]
        if "gap" in sample:
            last = now if last is None else last
            reason = reason or str(sample["gap"])
            continue
        if last is not None and (reason or now - last > _MISSED * interval):
            found.append(Gap(last, now, reason or "none arrived"))
        last, reason = now, None
    if last is not None and reason is not None:
        found.append(Gap(last, samples[-1]["mono"], reason))
    return found
