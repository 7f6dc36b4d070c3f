# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab exec`: a command in a guest, with its input, output and exit code."""

from __future__ import annotations

import argparse
import shlex
import subprocess

from kztlab.cli.output import emit, json_option
from kztlab.errors import BadInput
from kztlab.lab.doctor import demand
from kztlab.lab.target import resolve, running, ssh_command
from kztlab.places import Places

SSH_FAILED = 255
"""SSH's own exit code when it could not do its part."""


def arguments(parser: argparse.ArgumentParser) -> None:
    json_option(parser)
    parser.add_argument("guest", metavar="[LAB/]GUEST", help="which guest")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="a program with its arguments; a single word is run by the guest's shell",
    )


def run(args: argparse.Namespace) -> int:
    words: list[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise BadInput("say which command", hint="kztlab exec GUEST -- free -m")
    demand(["ssh"])
    places = Places.default()
    target = resolve(places, args.guest)
    command = ssh_command(places, target, running(places, target))
    command += ["-o", "BatchMode=yes", "-T", words[0] if len(words) == 1 else shlex.join(words)]
    done = subprocess.run(
        command, check=False, capture_output=args.json, text=True, errors="replace"
    )
    if done.returncode == SSH_FAILED:
        running(places, target)  # raises if the guest has gone meanwhile
    if args.json:
        emit({"exit": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
    return done.returncode
