# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab logs`: what a guest said on its console."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from kztlab.guest import console
from kztlab.lab.target import resolve
from kztlab.places import Places

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

POLL = 0.3


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="[LAB/]GUEST", help="which guest")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it says more")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N lines")


def run(args: argparse.Namespace) -> int:
    log = resolve(Places.default(), args.guest).guest.console
    lines = console.text(log).splitlines()
    for line in lines if args.lines is None else lines[max(0, len(lines) - args.lines) :]:
        print(line)
    if args.follow:
        _follow(log)
    return 0


def _follow(log: Path) -> None:
    """Until interrupted; a log that became shorter belongs to a new boot."""
    position = _size(log)
    while True:
        time.sleep(POLL)
        size = _size(log)
        if size < position:
            position = 0
        if size > position:
            with suppress(FileNotFoundError), log.open("rb") as file:
                file.seek(position)
                fresh = file.read(size - position)
                position += len(fresh)
                print(console.clean(fresh.decode(errors="replace")), end="", flush=True)


def _size(log: Path) -> int:
    """Its bytes; none while the lab is down, or not up again yet."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0
