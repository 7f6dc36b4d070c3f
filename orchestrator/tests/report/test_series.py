# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kztlab.report.series import Gap, Series, extract, gaps, merged


def sample(mono: float, **values: object) -> dict[str, object]:
    return {"mono": mono, **values}


def test_what_is_missing_is_a_gap() -> None:
    samples = [sample(0.0, x=1), sample(1.0), sample(2.0, gap="away"), sample(3.0, x=4)]
    series = extract(samples, lambda each: each["x"], 1.0)
    assert series == Series([0.0, 1.0, 2.0, 3.0], [1, None, None, 4])


def test_time_without_samples_is_a_gap() -> None:
    series = extract([sample(0.0, x=1), sample(9.0, x=2)], lambda each: each["x"], 1.0)
    assert series == Series([0.0, 1.0, 9.0], [1, None, 2])
    busy = extract([sample(0.0, x=1), sample(3.0, x=2)], lambda each: each["x"], 1.0)
    assert busy == Series([0.0, 3.0], [1, 2])


def test_rates_leave_out_gaps_and_resets() -> None:
    series = Series([0.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0, 10, None, 20, 5, 8])
    assert series.rate() == Series(series.times, [None, 5.0, None, None, None, 3.0])
    assert Series([], []).rate() == Series([], [])


@pytest.mark.parametrize(
    ("windows", "growth"),
    [
        ([(1.5, 3.5)], 12),  # from the sample at 1 to the one at 4
        ([(1.0, 4.0)], 12),
        ([(0.0, 2.0), (1.0, 4.0)], 14),  # what overlaps counts once
        ([(0.0, 1.0), (3.0, 4.0)], 9),
        ([(-5.0, 99.0)], 21),  # as far as there are samples
        ([], 0),
    ],
)
def test_a_counters_growth_in_windows(windows: list[tuple[float, float]], growth: int) -> None:
    series = Series([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0, 2, 5, 7, 14, 21])
    assert series.increase(windows) == growth


def test_a_counter_that_was_reset_started_from_zero() -> None:
    series = Series([0.0, 1.0, 2.0, 3.0], [10, 30, 4, 6])
    assert series.increase([(0.0, 3.0)]) == 20 + 4 + 2


def test_growth_is_unknown_without_values() -> None:
    assert Series([], []).increase([(0, 1)]) is None
    assert Series([0.0], [None]).increase([(0, 1)]) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8))
def test_merged_windows_cover_the_same_and_nothing_twice(spans: list[tuple[int, int]]) -> None:
    windows = [(float(start), float(start + length)) for start, length in spans]
    union = merged(windows)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(union))
    for instant in range(120):
        within = any(start <= instant / 2 <= end for start, end in windows)
        assert within == any(start <= instant / 2 <= end for start, end in union)


def test_gaps_span_from_sample_to_sample() -> None:
    samples = [
        sample(0.0, gap="not up"),
        sample(1.0, x=1),
        sample(2.0, x=1),
        sample(2.5, gap="away"),
        sample(2.7, gap="worse"),
        sample(4.0, x=1),
        sample(9.0, x=1),
        sample(9.5, gap="ended"),
    ]
    assert gaps(samples, 1.0) == [
        Gap(0.0, 1.0, "not up"),
        Gap(2.0, 4.0, "away"),
        Gap(4.0, 9.0, "none arrived"),
        Gap(9.0, 9.5, "ended"),
    ]
    assert gaps([], 1.0) == []
