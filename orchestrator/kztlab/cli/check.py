# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab check`: everything that is wrong with a cluster.yaml, here and in itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option
from kztlab.spec import HostFacts, SpecError, check, load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from kztlab.spec import Problem


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", type=Path, help="a cluster.yaml")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    problems: Sequence[Problem]
    try:
        cluster = load(args.spec)
        problems = check(cluster, HostFacts.read())
    except SpecError as error:
        problems = error.problems
    if args.json:
        emit({"ok": not problems, "problems": [asdict(problem) for problem in problems]})
        return SpecError.exit_code if problems else 0
    if problems:
        raise SpecError(problems)
    guests = len(cluster.expanded())
    print(f"{args.spec}: fine: lab {cluster.lab}, {guests} guest{'s' if guests > 1 else ''}")
    return 0
