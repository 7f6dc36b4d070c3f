# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab ls`: the labs there are, whole or half-made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option, table
from kztlab.lab.status import overview
from kztlab.places import Places

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    labs = overview(Places.default())
    if args.json:
        emit({"labs": labs})
        return 0
    rows = [
        (lab["lab"], lab["state"], f"{lab['running']}/{lab['guests']}", lab["spec"], lab["run"])
        for lab in labs
    ]
    table(("lab", "state", "guests", "spec", "run"), rows)
    return 0
