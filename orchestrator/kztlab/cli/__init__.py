# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one module per verb, each with `arguments(parser)` and `run(args)`.

Only the module of the verb that is asked for is loaded, so that `kztlab ls` does not wait for the
plotting library. A verb's `run` returns the exit code or raises a `KztlabError`; what becomes of
errors is decided here, once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kztlab.errors import HostUnable, Interrupted, KztlabError
from kztlab.places import Places

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

VERBS = {
    "up": "bring a lab up and run its workloads; its guests stay up",
    "run": "bring a lab up, run its workloads, report, and take it down again",
    "down": "take a lab down; its runs are kept",
    "ls": "list the labs",
    "status": "show a lab's guests and its store, as they are now",
    "ssh": "open a shell in a guest",
    "exec": "run a command in a guest, with its exit code",
    "logs": "show the end of a guest's console",
    "report": "render the report of a run again",
    "check": "check a cluster.yaml against itself and this host",
    "schema": "print the JSON schema of cluster.yaml",
    "init": "write an example cluster.yaml",
    "doctor": "tell what this host has and lacks",
    "image": "build, list and remove guest images",
    "bench": "time the store beside the bare codec and the host's zram",
}

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""What a disk says that cannot be written."""

BUG = 70
"""Exit code for an error that is kztlab's own: sysexits' EX_SOFTWARE."""

EPILOG = """\
exit codes: 0 fine, 1 workload failed, 2 bad input, 3 guest lost, 4 host not able (the hint says
what would help), 70 a bug in kztlab, 130 interrupted (what was started is listed by `kztlab ls`)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    debug = False
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        args = _parser(given).parse_args(given)  # loads the verb's module, which takes a while
        debug = args.debug
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"))
    except BrokenPipeError:
        # whoever read our output has had enough; nothing can be told any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  -- the last resort: a bug is reported, not thrown
        if debug:
            traceback.print_exc()
        return _fail(known) if (known := _known(error)) else _bug(error)
    return code


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kztlab",
        description="Labs of virtual machines that swap into one compressed page store.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(metavar="VERB", required=True, dest="verb")
    asked = next((word for word in given if word in VERBS), None)
    for verb, summary in VERBS.items():
        each = verbs.add_parser(
            verb,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            parents=[common],
            allow_abbrev=False,
        )
        if verb == asked:
            module = import_module(f"kztlab.cli.{verb}")
            module.arguments(each)
            each.set_defaults(run=module.run)
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(error: KztlabError) -> int:
    print(f"kztlab: error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _known(error: Exception) -> KztlabError | None:
    """The error as one for the user, unless it is a bug.

    A full disk is told here, because files are written in so many places.
    """
    if isinstance(error, KztlabError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        path = error.filename2 or error.filename  # of a copy, the second one
        return HostUnable(
            f"cannot write {path or 'a file'}: {error.strerror}",
            hint="make room; KZTLAB_STATE and KZTLAB_CACHE name folders on other disks",
        )
    return None


def _bug(error: Exception) -> int:
    """Keep the traceback where its finder can send it from."""
    text = "".join(traceback.format_exception(error))
    print(f"kztlab: error: a bug in kztlab: {type(error).__name__}: {error}", file=sys.stderr)
    with contextlib.suppress(OSError):
        descriptor, path = tempfile.mkstemp(prefix="traceback-", suffix=".txt", dir=_state())
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{' '.join(sys.argv)}\n{text}")
        print(f"  the traceback is in {path}", file=sys.stderr)
    return BUG


def _state() -> Path:
    """The state folder, or the current one where even that is in doubt."""
    try:
        return Places.default().folder(Places.default().state)
    except KztlabError:
        return Path.cwd()
