# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the HTTP API on a listening socket until a signal says stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Final

import uvicorn

from kztmem.api import application

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from kztmem.service import Service

_GRACE: Final = 1
"""Seconds that API requests get at shutdown."""


class _Server(uvicorn.Server):
    """uvicorn, with signals left to its caller and a call once it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def configuration(service: Service) -> uvicorn.Config:
    """uvicorn's configuration: one protocol, one loop, no log of its own."""
    return uvicorn.Config(
        application(service),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )


def run(service: Service, listener: socket.socket, ready: Callable[[], None]) -> signal.Signals:
    """Serves the API; returns the signal that ended it.

    Expects the stop signals blocked and unblocks those that are not ignored. Closes `listener`.
    """
    return asyncio.run(_run(service, listener, ready))


async def _run(
    service: Service, listener: socket.socket, ready: Callable[[], None]
) -> signal.Signals:
    server = _Server(configuration(service), ready)
    stopped_by: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        stopped_by.append(number)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    await server.serve(sockets=[listener])
    return stopped_by[0]
