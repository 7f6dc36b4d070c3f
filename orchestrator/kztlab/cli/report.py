# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab report`: render a run's report again, from its samples and summary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option
from kztlab.errors import BadInput
from kztlab.lab import record
from kztlab.observe import RunDirectory
from kztlab.places import Places
from kztlab.report import Summary, print_summary, write_junit, write_report

if TYPE_CHECKING:
    import argparse


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
    if not directory.summary.is_file():
        raise BadInput(f"the run in {directory.path} was interrupted: it has no summary")
    write_junit(directory)
    report = write_report(directory)
    summary = Summary.model_validate_json(directory.summary.read_bytes())
    if args.json:
        emit(summary.brief())
    else:
        print_summary(summary, sys.stdout)
        print(f"report: {report}")
    return 0


def _directory(places: Places, given: str | None) -> Path:
    if given is not None and ("/" in given or Path(given).is_dir()):
        return Path(given).absolute()
    name = "*" if given is None else record.check_name(given)
    summaries = list(places.runs.glob(f"{name}-[0-9]*-[0-9]*/summary.json"))
    if not summaries:
        whose = "is no finished run" if given is None else f"is no finished run of the lab {given}"
        raise BadInput(f"there {whose}")
    return max(summaries, key=lambda path: path.stat().st_mtime).parent
