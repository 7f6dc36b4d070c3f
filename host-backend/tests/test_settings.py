# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import pytest

from kztmem.errors import BadInput
from kztmem.settings import (
    MAX_SWAP,
    MIN_SPILL,
    PAGE_SIZE,
    Spill,
    Terms,
    check_bound,
    check_codec,
    check_dedup,
    check_name,
    check_socket_path,
    check_spill,
    check_swap,
    check_weight,
)


@pytest.mark.parametrize("name", ["a", "web-1", "z" * 31, "a--"])
def test_names(name: str) -> None:
    assert check_name(name, key="name") == name


@pytest.mark.parametrize(
    "name", ["", "1a", "-a", "A", "a_b", "z" * 32, "a/../b", "..", "a\n", "ä", "a b"]
)
def test_no_names(name: str) -> None:
    with pytest.raises(BadInput, match="not a client's name"):
        check_name(name, key="name")


def test_swap_is_whole_pages_and_the_hint_says_which() -> None:
    with pytest.raises(BadInput, match="the next size up is 8192"):
        check_swap(PAGE_SIZE + 1, key="swap")


def test_swap_has_at_most_all_32_bit_page_numbers() -> None:
    assert check_swap("16TiB", key="swap") == MAX_SWAP
    with pytest.raises(BadInput, match="at most 16TiB"):
        check_swap(MAX_SWAP + PAGE_SIZE, key="swap")


@pytest.mark.parametrize("codec", ["none", "lzo", "lz4", "zstd", "zstd:1", "zstd:19", "zstd:-7"])
def test_codecs(codec: str) -> None:
    assert check_codec(codec, key="codec") == codec


@pytest.mark.parametrize("codec", ["", "LZO", "zstd:", "zstd:20", "zstd:-8", "zstd:x", "gzip"])
def test_no_codecs(codec: str) -> None:
    with pytest.raises(BadInput, match="one of lzo, lz4"):
        check_codec(codec, key="codec")


def test_a_spill_file_has_a_size_and_perhaps_a_path() -> None:
    assert check_spill("none", key="spill") == Spill(0)
    assert check_spill(MIN_SPILL, key="spill") == Spill(MIN_SPILL)
    assert check_spill("1GiB,a,b", key="spill") == Spill(1 << 30, Path("a,b"))
    with pytest.raises(BadInput, match="can have"):
        check_spill(MIN_SPILL - 1, key="spill")


def test_socket_path_is_counted_in_bytes() -> None:
    fits = Path("/" + "x" * 106)
    assert check_socket_path(fits, key="--state") == fits
    with pytest.raises(BadInput, match="has 108 bytes, 107 are possible"):
        check_socket_path(Path("/" + "x" * 105 + "ä"), key="--state")


def test_weights_and_bounds() -> None:
    assert [check_weight(weight, key="weight") for weight in (1, 65535)] == [1, 65535]
    for weight in (0, -1, 65536, True):
        with pytest.raises(BadInput, match="from 1 to 65535"):
            check_weight(weight, key="weight")
    assert [check_bound(size, key="cap") for size in ("none", "1MiB", 1)] == [0, 1 << 20, 1]
    for size in ("None", "", 0, -1, "1MB", True):
        with pytest.raises(BadInput):
            check_bound(size, key="cap")


def test_terms_change_as_far_as_is_said() -> None:
    nothing = Terms()
    assert nothing.core() == {"weight": 1, "cap": None, "reservation": 0}
    some = nothing.changed(Terms(cap=4096, weight=2))
    assert some.core() == {"weight": 2, "cap": 4096, "reservation": 0}
    assert some.changed(nothing) == some
    assert some.changed(Terms(cap=0)).core() == {"weight": 2, "cap": None, "reservation": 0}


@pytest.mark.parametrize("mode", ["off", "client", "domain:a", "domain:" + "x" * 32, "domain::"])
def test_ways_to_deduplicate(mode: str) -> None:
    assert check_dedup(mode, key="dedup") == mode


@pytest.mark.parametrize(
    "mode", ["", "on", "domain", "domain:", "domain:a b", "domain:" + "x" * 33]
)
def test_no_ways_to_deduplicate(mode: str) -> None:
    with pytest.raises(BadInput, match="one of off, client and domain:NAME"):
        check_dedup(mode, key="dedup")
