# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab doctor`: what this host has and lacks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from kztlab.cli.output import emit, json_option, table
from kztlab.errors import HostUnable
from kztlab.lab.doctor import examine, remedies

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    findings = examine()
    missing = [finding for finding in findings if not finding.ok]
    if args.json:
        emit({"ok": not missing, "requirements": [asdict(finding) for finding in findings]})
        return HostUnable.exit_code if missing else 0
    table(
        ("requirement", "", "found"),
        [(each.name, "ok" if each.ok else "missing", each.detail) for each in findings],
    )
    for remedy in remedies(missing):
        print(remedy)
    return HostUnable.exit_code if missing else 0
