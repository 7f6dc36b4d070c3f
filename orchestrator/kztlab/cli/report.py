# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab report`: render a run's report again, from its samples and summary."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option
from kztlab.errors import BadInput
from kztlab.lab import record
from kztlab.observe import RunDirectory
from kztlab.places import Places
from kztlab.report import print_summary, read_summary, write_junit, write_report

if TYPE_CHECKING:
    import argparse


_RUN = re.compile(r"(?P<lab>[a-z0-9-]+)-[0-9]{8}-[0-9]{6}(-[0-9]+)?")
"""A run directory's name: its lab, when it began, and a number should that not be enough."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "which",
        metavar="RUN",
        nargs="?",
        help="a run directory, or a lab for its newest; by default the newest of all",
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    directory = RunDirectory.open(_directory(Places.default(), args.which))
    summary = read_summary(directory)
    write_junit(directory)
    report = write_report(directory)
    if args.json:
        emit(summary.brief())
    else:
        print_summary(summary, sys.stdout)
        print(f"report: {report}")
    return 0


def _directory(places: Places, given: str | None) -> Path:
    if given is not None and ("/" in given or Path(given).is_dir()):
        return Path(given).absolute()
    summaries = [
        path
        for path in places.runs.glob("*/summary.json")
        if (run := _RUN.fullmatch(path.parent.name)) and given in {None, run["lab"]}
    ]
    if not summaries:
        whose = "" if given is None else f" of the lab {record.check_name(given)}"
        raise BadInput(f"there is no finished run{whose}")
    return max(summaries, key=lambda path: path.stat().st_mtime).parent
