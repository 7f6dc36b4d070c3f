# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kztlab.report import RunError, write_junit

if TYPE_CHECKING:
    from collections.abc import Callable

    from kztlab.observe import RunDirectory
    from kztlab.report import Summary


def written(run: RunDirectory) -> ET.Element:
    return ET.fromstring(write_junit(run).read_bytes())


def test_a_case_for_each_workload_on_each_guest(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    summarized()
    root = written(run)
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.attrib == {
        "name": "made-up",
        "tests": "4",
        "failures": "0",
        "errors": "0",
        "skipped": "0",
        "time": "90.000",
        "timestamp": "2026-01-02T03:04:05",
    }
    assert [case.attrib for case in suite] == [
        {"classname": f"made-up.{guest}", "name": "fill", "time": "59.500"}
        for guest in ("web-1", "web-2", "db", "base")
    ]


def test_failures_and_errors_have_their_details(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    """Whatever a guest printed, the file stays XML."""
    errors = (RunError(message="guest db panicked\x00", guest="db"), RunError(message="no <room>"))
    summarized(failed=True, errors=errors)
    (suite,) = written(run)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "1", "2")
    (failure,) = suite.iter("failure")
    assert failure.attrib == {"type": "WorkloadFailed", "message": "3 of 76800 pages were wrong"}
    assert failure.text == (
        "3 of 76800 pages were wrong\nbad pages: 3\n"
        "offset 17: \ufffd[31m<expected> 5 & found 6\ufffd[0m\ufffd"
    )
    assert [
        (case.get("classname"), case.get("name"), error.get("message"))
        for case in suite
        for error in case.iter("error")
    ] == [("made-up.db", "lab", "guest db panicked\ufffd"), ("made-up", "lab", "no <room>")]
