# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab init`: write an example cluster.yaml, never over a file that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, HostUnable
from kztlab.spec import init_text

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", type=Path, default=Path("cluster.yaml"))


def run(args: argparse.Namespace) -> int:
    path: Path = args.path
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(init_text())
    except FileExistsError:
        raise BadInput(f"{path} exists already", hint="name another file") from None
    except OSError as error:
        raise HostUnable(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}; bring it up with: kztlab up {path}")
    return 0
