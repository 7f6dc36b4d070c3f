# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made of what a workload prints; the guest is not trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kztlab.guest import Completed
from kztlab.workload.result import (
    OUTPUT_KEPT,
    FilesReport,
    LoadReport,
    judge_command,
    judge_load,
    tail,
)

GOOD: dict[str, Any] = {
    "ok": True,
    "pages": 100,
    "passes": 2,
    "bad_pages": 0,
    "seconds": 1.5,
    "fill_seconds": 0.5,
    "longest_access_seconds": 0.25,
    "pswpin": 10,
    "pswpout": 20,
    "errors": [],
}
FILES: dict[str, Any] = {
    "ok": True,
    "operations": 50,
    "pages_read": 70,
    "pages_written": 60,
    "bad_pages": 0,
    "seconds": 12.5,
    "longest_operation_seconds": 0.5,
    "errors": [],
}
WRONG = {
    "pass": 1,
    "address": "0x7f0000001000",
    "offset": 4096,
    "expected": 1,
    "found": 255,
    "wrong_bytes": 4000,
    "holds": "page 7 of pass 0",
}


def ended(report: object, exit_code: int = 0, stderr: str = "") -> Completed:
    return Completed(exit_code, json.dumps(report), stderr)


def test_a_good_report_is_good() -> None:
    report, failure = judge_load(LoadReport, ended(GOOD))
    assert failure is None
    assert isinstance(report, LoadReport)
    assert (report.pages, report.seconds) == (100, 1.5)


def test_counters_that_the_kernel_lacks_are_missing() -> None:
    assert judge_load(LoadReport, ended(GOOD | {"pswpin": None, "pswpout": None}))[1] is None


def test_bad_pages_are_told_with_the_first_of_them() -> None:
    bad = GOOD | {"ok": False, "bad_pages": 3, "errors": [WRONG]}
    report, failure = judge_load(LoadReport, ended(bad, 1))
    assert report is not None
    assert report.bad_pages == 3
    assert failure == (
        "3 of 100 pages were wrong, the first: pass 1, address 0x7f0000001000, "
        "offset 0x1000: expected 0x01, found 0xff; "
        "4000 bytes wrong, the page holds page 7 of pass 0"
    )


def test_a_load_on_files_is_judged_alike() -> None:
    assert judge_load(FilesReport, ended(FILES))[1] is None
    bad = FILES | {"ok": False, "bad_pages": 2, "errors": ["file 1 page 2, read: not version 3"]}
    report, failure = judge_load(FilesReport, ended(bad, 1))
    assert report is not None
    assert failure == "2 of 70 pages were wrong, the first: file 1 page 2, read: not version 3"
    assert judge_load(FilesReport, ended(FILES, 2))[1] is not None
    for wrong in (GOOD, FILES | {"errors": ["\x1b[2J"]}, FILES | {"operations": -1}):
        assert judge_load(FilesReport, ended(wrong))[0] is None


@pytest.mark.parametrize(
    ("report", "exit_code"),
    [(GOOD | {"bad_pages": 1}, 0), (GOOD | {"ok": False}, 0), (GOOD, 1)],
)
def test_whatever_looks_wrong_is_a_failure(report: dict[str, Any], exit_code: int) -> None:
    assert judge_load(LoadReport, ended(report, exit_code))[1] is not None


@pytest.mark.parametrize(
    "report",
    [
        None,
        [],
        {},
        GOOD | {"pages": -1},
        GOOD | {"pages": "many"},
        GOOD | {"seconds": float("nan")},
        GOOD | {"surprise": 1},
        GOOD | {"errors": [WRONG] * 17},
        GOOD | {"errors": [WRONG | {"found": 256}]},
        GOOD | {"errors": [WRONG | {"address": "<script>"}]},
        {key: value for key, value in GOOD.items() if key != "bad_pages"},
    ],
)
def test_what_is_no_report_is_a_failure(report: object) -> None:
    parsed, failure = judge_load(LoadReport, ended(report))
    assert parsed is None
    assert failure is not None
    assert failure.startswith("kzt-load printed no report")


def test_a_killed_workload_is_told_as_such() -> None:
    report, failure = judge_load(LoadReport, Completed(137, "", "Killed\n"))
    assert report is None
    assert failure == (
        "kzt-load was killed by signal 9, perhaps for lack of memory: see the console: Killed"
    )


def test_a_command_is_judged_by_its_exit_status() -> None:
    assert judge_command(Completed(0, "", "noise")) is None
    assert judge_command(Completed(3, "", "one\ntwo\n")) == (
        "the command ended with exit code 3: two"
    )


def test_only_the_end_of_long_output_is_kept() -> None:
    text = tail("x" * 10 * OUTPUT_KEPT + "end")
    assert len(text) == OUTPUT_KEPT + 1
    assert text.endswith("end")
