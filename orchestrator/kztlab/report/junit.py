# SPDX-License-Identifier: GPL-2.0-or-later
"""The summary as JUnit XML, which CI systems show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kztlab.report.summary import read_summary

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.observe import RunDirectory
    from kztlab.report.summary import RunError, Summary, WorkloadResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(run: RunDirectory) -> Path:
    """Writes junit.xml from summary.json: a test case for each workload on each guest, and one for
    each error of the lab itself."""
    return run.write(run.junit.name, junit(read_summary(run)))


def junit(summary: Summary) -> str:
    """The XML."""
    cases = [
        _workload(summary.lab, guest.name, workload)
        for guest in summary.guests
        for workload in guest.workloads
    ]
    cases += [_error(summary.lab, error) for error in summary.errors]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": "0",
        "time": f"{summary.seconds:.3f}",
    }
    suite = ET.Element("testsuite", {"name": summary.lab, **counts})
    suite.set("timestamp", summary.started.strftime("%Y-%m-%dT%H:%M:%S"))
    suite.extend(cases)
    root = ET.Element("testsuites", {"name": "kztlab", **counts})
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _workload(lab: str, guest: str, workload: WorkloadResult) -> ET.Element:
    case = _case(f"{lab}.{guest}", workload.name, workload.seconds)
    if not workload.ok:
        failure = ET.SubElement(case, "failure", type="WorkloadFailed")
        failure.set("message", _text(workload.failure or "failed"))
        bad = "" if workload.bad_pages is None else f"bad pages: {workload.bad_pages}\n"
        failure.text = _text(f"{workload.failure or 'failed'}\n{bad}{workload.output}")
    if workload.output:
        ET.SubElement(case, "system-out").text = _text(workload.output)
    return case


def _error(lab: str, error: RunError) -> ET.Element:
    case = _case(f"{lab}.{error.guest}" if error.guest else lab, "lab", 0)
    wrong = ET.SubElement(case, "error", type="LabError", message=_text(error.message))
    wrong.text = _text(error.message)
    return case


def _case(classname: str, name: str, seconds: float) -> ET.Element:
    return ET.Element("testcase", classname=classname, name=name, time=f"{seconds:.3f}")


def _text(text: str) -> str:
    """Text as XML 1.0 can hold it: guests print what they like."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
