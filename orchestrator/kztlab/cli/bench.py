# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab bench`: hands everything over to `kztmemd bench`."""

from __future__ import annotations

import argparse
import subprocess

from kztlab.errors import HostUnable
from kztlab.store.daemon import COMMAND


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["store"], help="what to measure")
    parser.add_argument(
        "rest",
        metavar="ARGUMENT",
        nargs=argparse.REMAINDER,
        help="files, memory dumps or folders, and options: see kztlab bench store --help",
    )


def run(args: argparse.Namespace) -> int:
    command = [str(COMMAND), "bench", args.what, *args.rest]
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        raise HostUnable(
            f"cannot run {COMMAND}: {error.strerror}", hint="./dev setup installs it"
        ) from error
