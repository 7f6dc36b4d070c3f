# SPDX-License-Identifier: GPL-2.0-or-later
"""The serving process: pages first, then the HTTP API, until a signal ends both."""

from __future__ import annotations

import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

from kztmem.errors import HostUnable
from kztmem.settings import check_socket_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kztmem.plan import Plan
    from kztmem.service import Service
    from kztmem.statedir import StateDir

GRACE: Final = 2.0
"""Seconds that requests in flight get at shutdown. With the API's second it stays below the time
for which the next owner waits for the lock."""

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})

_BACKLOG: Final = 128

_log = logging.getLogger(__name__)


def api_path(sockets: Path) -> Path:
    """Where the HTTP API listens; raises `BadInput` if that is too long."""
    return check_socket_path(sockets / "api.sock", key="--state")


def bind_api(path: Path) -> socket.socket:
    """Listens, so that callers wait instead of failing while the API is loaded or restarted."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        # What is there was left by a dead daemon: the state directory is locked.
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HostUnable(f"cannot listen on {path}: {error.strerror}", key="--state") from error
    finally:
        os.umask(before)
    return listener


def serve(
    plan: Plan,
    state: StateDir,
    listener: socket.socket,
    ready: Callable[[dict[str, Any], list[str]], None],
    *,
    supervisor: int | None,
    warnings: list[str],
) -> int:
    """Serves until told to stop; returns the exit code.

    Calls `ready` with the line for whoever waits, and warnings. Raises `HostUnable` if it
    cannot serve. Signals that stop it are blocked until there is a loop to take them, and in
    all threads of the core.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from kztmem.service import Service  # noqa: PLC0415 -- the core's threads block signals, too

    service = Service(plan, state, supervisor=supervisor, warnings=warnings)
    for warning in service.warnings():
        _log.warning("%s", warning)
    _log.info("serving %s", service.describe())

    # Pages are being served; now there is time to load the rest.
    from kztmem.web import run  # noqa: PLC0415

    stopped_by = run(service, listener, lambda: ready(_line(plan, service), service.warnings()))
    service.shutdown(GRACE)
    api_path(plan.sockets).unlink(missing_ok=True)
    _log.info("stopped by %s", stopped_by.name)
    return 130 if stopped_by == signal.SIGINT else 0


def _line(plan: Plan, service: Service) -> dict[str, Any]:
    registry = service.registry
    return {
        "ready": True,
        "api": str(api_path(plan.sockets)),
        "pid": os.getpid(),
        "clients": {name: registry.sockets(name).to_json() for name in registry.names()},
    }
