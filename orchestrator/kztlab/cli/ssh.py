# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab ssh`: the system's SSH client, with the lab's keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kztlab.lab.doctor import demand
from kztlab.lab.target import resolve, running, ssh_command
from kztlab.places import Places

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="[LAB/]GUEST", help="which guest")


def run(args: argparse.Namespace) -> int:
    demand(["ssh"])
    places = Places.default()
    target = resolve(places, args.guest)
    command = ssh_command(places, target, running(places, target))
    os.execvp(command[0], command)  # noqa: S606  -- becoming ssh is the point
