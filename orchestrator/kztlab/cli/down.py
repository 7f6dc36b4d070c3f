# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab down`: take a lab, or all of them, down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option
from kztlab.cli.progress import showing
from kztlab.errors import BadInput, KztlabError
from kztlab.lab.down import down, everything, release_host
from kztlab.lab.record import check_name
from kztlab.places import Places
from kztlab.spec import load

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labs", metavar="LAB", nargs="*", help="a lab's name, or its cluster.yaml")
    parser.add_argument("--all", action="store_true", help="every lab there is")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    if bool(args.labs) == args.all:
        raise BadInput("say which labs: their names, or --all", hint="kztlab ls lists them")
    places = Places.default()
    labs = everything(places) if args.all else [_name(lab) for lab in args.labs]
    ended: list[str] = []
    failures: list[KztlabError] = []
    with showing(args) as progress:
        for lab in labs:
            try:
                if down(places, lab, progress):
                    ended.append(lab)
            except KztlabError as error:
                if failures:  # the first one is told at the end
                    progress.done(lab, error.message, ok=False)
                failures.append(error)
        release_host(places)
    if args.json:
        emit({"down": ended})
    elif not failures:
        for lab in labs:
            print(f"{lab}: down" if lab in ended else f"{lab}: was not up")
    if failures:
        raise failures[0]
    return 0


def _name(given: str) -> str:
    """A path has a slash or a suffix, which no lab's name has."""
    return load(Path(given)).lab if "/" in given or "." in given else check_name(given)
