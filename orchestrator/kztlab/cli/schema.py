# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab schema`: the JSON schema of cluster.yaml, for editors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kztlab.spec import json_schema

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """It has none: what it prints is JSON anyway."""
    parser.set_defaults(json=True)


def run(_args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0
