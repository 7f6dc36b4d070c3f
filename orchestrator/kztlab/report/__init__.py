# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run came to: summary, table, report and JUnit."""

from kztlab.report.html import write_report
from kztlab.report.junit import write_junit
from kztlab.report.summary import Ran, RunError, Summary, WorkloadResult, read_summary, summarize
from kztlab.report.table import print_summary

__all__ = [
    "Ran",
    "RunError",
    "Summary",
    "WorkloadResult",
    "print_summary",
    "read_summary",
    "summarize",
    "write_junit",
    "write_report",
]
