# SPDX-License-Identifier: GPL-2.0-or-later
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kztmem.errors import BadInput
from kztmem.units import MAX_SIZE, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (4096, 4096),
        ("4096B", 4096),
        ("4KiB", 4 << 10),
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        (" 2TiB ", 2 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text, key="memory") == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a size"),
        ("MiB", "is not a size"),
        ("-1MiB", "is not a size"),
        ("1 MiB MiB", "is not a size"),
        ("1e9", "is not a size"),
        ("٤KiB", "is not a size"),
        ("512MB", "did you mean MiB?"),
        ("512m", "did you mean MiB?"),
        ("1GB", "did you mean GiB?"),
        ("1XiB", "write it like 512MiB"),
        ("0.3KiB", "not a whole number of bytes"),
        ("0", "out of range"),
        (-1, "out of range"),
        (MAX_SIZE + 1, "out of range"),
        ("8388608TiB", "out of range"),
        (True, "is not a size"),
    ],
)
def test_no_sizes(text: str | int, says: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_size(text, key="memory")
    assert str(error.value).startswith("memory: ")
    assert says in str(error.value)


@given(st.text())
def test_any_text_is_a_size_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert 0 < parse_size(text, key="memory") <= MAX_SIZE


@given(st.integers(1, MAX_SIZE), st.sampled_from([1, 1 << 10, 1 << 20, 1 << 30, 1 << 40]))
def test_what_is_shown_exactly_is_understood(count: int, unit: int) -> None:
    size = min(count, MAX_SIZE // unit) * unit
    shown = format_size(size)
    if "." not in shown:
        assert parse_size(shown, key="memory") == size
