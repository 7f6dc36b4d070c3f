# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab up`: bring a lab up and run its workloads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option
from kztlab.cli.progress import showing
from kztlab.lab.plan import Options
from kztlab.lab.up import up
from kztlab.places import Places
from kztlab.report import print_summary

if TYPE_CHECKING:
    import argparse

    from kztlab.lab.run import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", type=Path, help="a cluster.yaml")
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="accelerator; auto (the default) takes kvm if a test boot under it succeeds",
    )
    parser.add_argument("--connect", metavar="URI", help="another libvirt than this user's own")
    json_option(parser)


def options(args: argparse.Namespace) -> Options:
    return Options(accel=args.accel, uri=args.connect)


def run(args: argparse.Namespace) -> int:
    with showing(args) as progress:
        result = up(Places.default(), args.spec, options(args), progress)
    show(args, result)
    if result.failure is None and not args.json:
        lab = result.summary.lab
        print(f"the lab is up: kztlab status {lab}, kztlab ssh {lab}/GUEST, kztlab down {lab}")
    return end(result)


def show(args: argparse.Namespace, result: Result) -> None:
    """Print what it came to."""
    if args.json:
        emit(result.summary.brief())
        return
    print_summary(result.summary, sys.stdout)
    for warning in result.summary.warnings:
        print(f"warning: {warning}")
    print(f"report: {result.summary.report}")


def end(result: Result) -> int:
    """0, or the worst failure raised for `main` to tell."""
    if result.failure is not None:
        raise result.failure
    return 0
