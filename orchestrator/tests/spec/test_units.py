# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kztlab.spec.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    UnitError,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("4096B", 4096),
        ("64KiB", 64 * KIB),
        ("512MiB", 512 * MIB),
        ("1.5 GiB", 3 * GIB // 2),
        (" 2TiB ", 2 * TIB),
        ("0.1KiB", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UnitError, match="not a whole number of bytes"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("512M", "sizes are binary: write 512MiB"),
        ("1G", "sizes are binary: write 1GiB"),
        ("1GB", "sizes are binary: write 1GiB"),
        ("64k", "sizes are binary: write 64KiB"),
        ("1.5g", "sizes are binary: write 1.5GiB"),
        ("192", "add a unit: 192MiB"),
        ("12 parsecs", "units are B, KiB, MiB, GiB and TiB"),
        ("-1MiB", "write it like 512MiB or 1GiB"),
        ("lots", "write it like 512MiB or 1GiB"),
        ("", "write it like 512MiB or 1GiB"),
        ("1MiB2", "write it like 512MiB or 1GiB"),
        ("9" * 40 + "B", "write it like 512MiB or 1GiB"),
        ("\u0663MiB", "write it like 512MiB or 1GiB"),
    ],
)
def test_what_is_no_size_is_told_how_to_be_one(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("500ms", 0.5), ("1s", 1), ("1.5h", 5400), ("10min", 600), ("2 h", 7200)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10m", "write 10min"),
        ("5", "write 5s"),
        ("5sec", "write 5s"),
        ("2 hours", "write 2h"),
        ("1d", "units are ms, s, min and h"),
        ("1min30s", "write it like 500ms, 10s, 5min or 1h"),
        ("0.5ms", "use a smaller unit"),
    ],
)
def test_what_is_no_duration_is_told_how_to_be_one(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)
    assert caught.value.hint == hint


@given(st.integers(min_value=0, max_value=1 << 60))
def test_a_size_survives_being_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


def test_sizes_and_durations_are_written_in_their_largest_whole_unit() -> None:
    sizes = [0, 1, KIB, 3 * GIB // 2, 2 * TIB]
    assert [format_size(size) for size in sizes] == ["0B", "1B", "1KiB", "1536MiB", "2TiB"]
    durations = [0, 0.25, 1, 90, 600, 7200]
    written = ["0s", "250ms", "1s", "90s", "10min", "2h"]
    assert [format_duration(duration) for duration in durations] == written
