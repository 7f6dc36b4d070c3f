# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput
from kztlab.observe import RunDirectory
from kztlab.report import RunError, Summary, print_summary, read_summary
from kztlab.report.summary import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def test_the_json_object_of_a_run(summarized: Callable[..., Summary], run: RunDirectory) -> None:
    brief = json.loads(json.dumps(summarized().brief()))
    assert set(brief) == {"lab", "run", "report", "accel", "guests"}
    assert brief["lab"] == "made-up"
    assert brief["run"] == str(run.path)
    assert brief["report"] == str(run.path / "report.html")
    assert brief["accel"] == "tcg"
    assert [guest["name"] for guest in brief["guests"]] == ["web-1", "web-2", "db", "base"]
    assert brief["guests"][0] == {
        "name": "web-1",
        "frontend": "nbd",
        "swapped_out_pages": 76_800,
        "swapped_in_pages": 53_760,
        "stored_pages": 50_000,
        "stored_bytes": 50_000 * 4096 // 3,
        "disk_read_bytes": 4 * 76_800 * 1024,
        "cleancache": None,
        "workloads": [
            {
                "name": "fill",
                "ok": True,
                "seconds": 59.5,
                "bad_pages": 0,
                "longest_access_seconds": 0.25,
                "operations": None,
            }
        ],
    }
    assert brief["guests"][3]["stored_pages"] is None
    assert brief["guests"][3]["stored_bytes"] is None


def test_a_run_that_was_moved_is_where_it_is(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    summarized()
    moved = RunDirectory.open(run.path.rename(run.path.with_name("elsewhere")))
    brief = read_summary(moved).brief()
    assert brief["run"] == str(moved.path)
    assert brief["report"] == str(moved.report)
    assert brief["guests"][3]["swapped_out_pages"] == 76_800


def test_both_ends_count_alike(summarized: Callable[..., Summary]) -> None:
    web = summarized().guests[0]
    assert (web.out.guest, web.out.store, web.out.agreement) == (76_800, 76_800, 1.0)
    assert (web.into.guest, web.into.store, web.into.agreement) == (53_760, 53_760, 1.0)
    assert web.ratio == 3.0
    assert web.load_pages == 76_800


def test_swapped_and_cached_pages_of_a_tmem_guest_are_told_apart(
    summarized: Callable[..., Summary],
) -> None:
    web, _, db, _ = summarized().guests
    assert (web.persistent, web.ephemeral) == (None, None)
    assert db.persistent is not None
    assert db.ephemeral is not None
    assert (db.out.store, db.out.agreement) == (76_800, 1.0)
    assert (db.persistent.puts, db.persistent.get_hits) == (76_800, 53_760)
    assert (db.ephemeral.puts, db.ephemeral.gets) == (153_600, 76_800)
    assert (db.ephemeral.get_hits, db.ephemeral.evicted) == (38_400, 19_200)


def test_what_the_guest_counted_of_cached_pages(summarized: Callable[..., Summary]) -> None:
    web, _, db, _ = summarized().guests
    assert web.cleancache is None
    assert db.cleancache is not None
    assert (db.cleancache.puts, db.cleancache.failed_puts) == (153_600, 9_600)
    assert (db.cleancache.succ_gets, db.cleancache.failed_gets) == (57_600, 19_200)
    assert db.cleancache.hit_share == 0.75


def test_ends_that_count_differently_are_told_apart() -> None:
    assert not Traffic(guest=1000, store=1049).disagrees
    assert Traffic(guest=1000, store=900).disagrees
    assert not Traffic(guest=0, store=0).disagrees
    assert not Traffic(guest=1000, store=None).disagrees


def test_refused_pages_are_a_warning(summarized: Callable[..., Summary]) -> None:
    summary = summarized()
    assert [guest.refused_pages for guest in summary.guests] == [0, 768, 0, None]
    assert [(guest.over_cap_pages, guest.over_reservation_pages) for guest in summary.guests] == [
        (0, 0),
        (384, 192),
        (0, 0),
        (None, None),
    ]
    full, capped, reserved = summary.warnings
    assert full.startswith("the store was full and refused 192 pages of web-2: ")
    assert capped.startswith("web-2 was at its cap and 384 of its pages were refused: ")
    assert reserved.startswith("other guests have reserved what 192 pages of web-2 would ")


def test_summary_json_reads_back(summarized: Callable[..., Summary], run: RunDirectory) -> None:
    summary = summarized()
    assert Summary.model_validate_json(run.summary.read_bytes()) == summary
    assert summary.store is not None
    assert summary.store["codec"] == "lzo"
    assert summary.host.memory_bytes == 8192 * MIB


def test_a_run_without_a_summary_is_bad_input(run: RunDirectory) -> None:
    with pytest.raises(BadInput, match="was interrupted"):
        read_summary(run)
    run.write("summary.json", '{"lab": "made-up"}')
    with pytest.raises(BadInput, match="not a summary of this version: Field required"):
        read_summary(run)


def test_a_run_is_fine_if_nothing_went_wrong(summarized: Callable[..., Summary]) -> None:
    assert summarized().ok
    assert not summarized(failed=True).ok
    assert not summarized(errors=(RunError(message="no"),)).ok


def test_a_run_without_any_samples_has_a_summary(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    for file in (run.path / "samples").iterdir():
        file.unlink()
    summary = summarized()
    web = summary.guests[0]
    assert (web.swapped_out_pages, web.stored_pages, web.ratio) == (None, None, None)
    assert summary.store is None


def test_the_table_is_aligned_lines_where_there_is_no_terminal(
    summarized: Callable[..., Summary],
) -> None:
    stream = io.StringIO()
    print_summary(summarized(failed=True), stream)
    assert stream.getvalue().splitlines() == [
        "guest  frontend  workloads          bad      pages out      pages in  stored   MiB  ratio",
        "web-1  nbd       fill ok 59.5s        0  76,800 (100%)  53,760 (70%)  50,000  65.1   3.00",
        "web-2  nbd       fill ok 59.5s        0  76,800 (100%)  53,760 (70%)  50,000  48.8   4.00",
        "db     tmem      fill FAILED 59.5s    3  76,800 (100%)  53,760 (70%)  50,000  39.1   5.00",
        "base   disk      fill ok 59.5s        0  76,800 (100%)  53,760 (70%)       -     -      -",
    ]


def test_the_table_is_drawn_on_a_terminal(
    summarized: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    print_summary(summarized(), stream)
    drawn = stream.getvalue()
    assert "─" in drawn
    for cell in ("web-2", "nbd", "76,800 (100%)", "53,760 (70%)", "50,000", "48.8", "4.00"):
        assert cell in drawn
