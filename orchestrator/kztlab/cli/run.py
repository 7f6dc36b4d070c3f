# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab run`: up, workloads, report and down, for CI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.cli import up
from kztlab.cli.progress import showing
from kztlab.lab.run_once import run_once
from kztlab.places import Places

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    up.arguments(parser)
    parser.add_argument("--keep", action="store_true", help="leave a failed lab up, to look at")


def run(args: argparse.Namespace) -> int:
    with showing(args) as progress:
        result = run_once(
            Places.default(), args.spec, up.options(args), progress, keep_failed=args.keep
        )
    up.show(args, result)
    return up.end(result)
