# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd: in the foreground, detached under a supervisor, or removing what one left.

As root the order is: make the directories, load what the serving user might not be able to read,
raise limits, become that user; only then is any file opened.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from kztmem import cli, handshake, preload
from kztmem.errors import DaemonError, HostUnable
from kztmem.plan import make_plan
from kztmem.privileges import User, become, choose_user, prepare_directory, raise_limits
from kztmem.removal import remove
from kztmem.serving import api_path, bind_api, serve
from kztmem.statedir import StateDir
from kztmem.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kztmem.settings import Settings

_INTERRUPTED: Final = 130

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        if given[:2] == ["bench", "store"]:
            from kztmem import bench  # noqa: PLC0415 -- the daemon has no use for it

            return bench.main(given[2:])
        invocation = cli.parse(given)
        if invocation.remove:
            remove(invocation.settings.state, invocation.settings.sockets)
            return 0
        if invocation.detach:
            return _detach(invocation.settings)
        return _foreground(invocation.settings)
    except DaemonError as error:
        _complain("error", str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED


def _foreground(settings: Settings) -> int:
    _start_log()
    warnings: list[str] = []
    user = _prepare(settings, warnings)
    if user != User.current():
        preload.load()
    raise_limits(warnings)
    become(user)
    with contextlib.closing(StateDir(settings.state)) as state:
        plan = make_plan(settings, state)
        listener = bind_api(api_path(plan.sockets))
        return serve(plan, state, listener, _ready, supervisor=None, warnings=warnings)


def _detach(settings: Settings) -> int:
    """Starts supervisor and daemon; returns once the daemon serves, or why it does not."""
    warnings: list[str] = []
    user = _prepare(settings, warnings)
    reading, writing = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        code = 1
        try:
            os.close(reading)
            code = _supervisor(settings, user, handshake.Sender(writing), warnings)
        finally:
            os._exit(code)
    try:
        os.close(writing)
        answer = handshake.receive(reading)
    except KeyboardInterrupt:
        os.kill(supervisor, signal.SIGTERM)
        raise
    if answer is None:
        log = settings.state / "kztmemd.log"
        raise HostUnable("kztmemd died while it started", hint=f"{log} may say why")
    line, warnings = answer
    for warning in warnings:
        _complain("warning", warning)
    _print(line)
    return 0


def _supervisor(
    settings: Settings, user: User, sender: handshake.Sender, warnings: list[str]
) -> int:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        preload.load()
        raise_limits(warnings)
        become(user)
        state = StateDir(settings.state)
        state.write_owner(os.getpid())
        _redirect(state.log)
        _start_log()
        plan = make_plan(settings, state)
        listener = bind_api(api_path(plan.sockets))
    except DaemonError as error:
        sender.refuse(error)
        return error.exit_code
    pid = os.getpid()

    def child() -> int:
        try:
            return serve(plan, state, listener, sender.ready, supervisor=pid, warnings=warnings)
        except DaemonError as error:
            _log.error("%s", error)
            sender.refuse(error)
            return error.exit_code

    return supervise(child)


def _prepare(settings: Settings, warnings: list[str]) -> User:
    """Checks what can be checked before anything starts; returns whom to serve as."""
    api_path(settings.sockets)
    user = choose_user(settings.user, settings.state, warnings)
    prepare_directory(settings.state, user, key="--state")
    if settings.sockets != settings.state:
        prepare_directory(settings.sockets, user, key="--sockets")
    return user


def _redirect(log: Path) -> None:
    """From now on standard error is the log; nothing of the starter's terminal is kept."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        output = os.open(log, flags, 0o600)
    except OSError as error:
        raise HostUnable(f"cannot open {log}: {error.strerror}", key="--state") from error
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)


def _start_log() -> None:
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _ready(line: dict[str, Any], _warnings: list[str]) -> None:
    """In the foreground warnings are in the log, which is standard error."""
    _print(line)


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _complain(kind: str, text: str) -> None:
    for line in text.splitlines():
        print(f"kztmemd: {kind}: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
