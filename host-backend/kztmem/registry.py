# SPDX-License-Identifier: GPL-2.0-or-later
"""The clients: which exist, where their sockets are, and how both last.

The file clients.json decides. It is written before a removal and after a creation, so a daemon that
dies in between leaves at most a pool without a client behind; the next start throws it away.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from kztmem._core import StoreError
from kztmem.clientsockets import ClientSockets
from kztmem.errors import Conflict, HostUnable, NotFound
from kztmem.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from kztmem._core import Server
    from kztmem.statedir import StateDir

_log = logging.getLogger(__name__)


class Registry:
    """The clients of one server. Methods may be called from any thread."""

    def __init__(self, server: Server, state: StateDir, sockets: Path) -> None:
        self._server = server
        self._state = state
        self._sockets = sockets
        self._clients: dict[str, int] = {}
        self._changing = threading.Lock()

    def recover(self) -> None:
        """Serves the clients of the state directory again; raises `HostUnable` if it cannot."""
        clients = self._state.clients()
        if clients is None:
            # Without it every pool would look like one that was being removed.
            raise HostUnable("clients.json is missing", key="--state", hint="restore it")
        for name, swap in clients.items():
            self._open(name, swap)
        for name in self._server.pools():
            if name not in clients:
                _log.warning("client %s: was being removed, its pages are thrown away", name)
                self._server.remove_client(name)
        self._clients = clients

    def names(self) -> list[str]:
        """All clients, in the order in which they were made."""
        return list(self._clients)

    def swap(self, name: str) -> int:
        """Size of a client's swap device in bytes; raises `NotFound`."""
        try:
            return self._clients[name]
        except KeyError:
            raise no_client(name) from None

    def sockets(self, name: str) -> ClientSockets:
        """Where a client's sockets are."""
        return ClientSockets.of(self._sockets, name)

    def add(self, name: str, swap: int) -> bool:
        """Makes a client that serves and lasts; False if it is there already.

        Raises `Conflict` if it has another size, `HostUnable` if it cannot be written down.
        """
        with self._changing:
            known = self._clients.get(name)
            if known is not None:
                self.check_same(name, swap)
                return False
            self._open(name, swap)
            try:
                self._state.write_clients(self._clients | {name: swap})
            except HostUnable:
                self._close(name)
                raise
            self._clients = self._clients | {name: swap}
            _log.info("client %s: made, swap of %s", name, format_size(swap))
            return True

    def check_same(self, name: str, swap: int) -> None:
        """Raises `Conflict` unless a client has this size, which never changes."""
        known = self.swap(name)
        if known != swap:
            raise other_size(name, known, swap)

    def remove(self, name: str) -> None:
        """Closes a client's connections, throws its pages away and forgets it.

        Raises `NotFound`, and `HostUnable` if that cannot be written down: then it goes on.
        """
        with self._changing:
            self.swap(name)
            rest = {other: swap for other, swap in self._clients.items() if other != name}
            self._state.write_clients(rest)
            self._clients = rest
            self._close(name)
            _log.info("client %s: removed", name)

    def _open(self, name: str, swap: int) -> None:
        paths = self.sockets(name).check(key=name)
        try:
            paths.folder.parent.mkdir(mode=0o700, exist_ok=True)
            paths.folder.mkdir(mode=0o700, exist_ok=True)
            self._server.add_client(name, swap, **paths.to_json())
        except (OSError, StoreError) as error:
            raise HostUnable(f"cannot serve it: {error}", key=name) from error

    def _close(self, name: str) -> None:
        self._server.remove_client(name)
        with contextlib.suppress(OSError):
            self.sockets(name).folder.rmdir()


def no_client(name: str) -> NotFound:
    """The error for a name that no client has."""
    return NotFound(f"there is no client {name!r}", key="name")


def other_size(name: str, known: int, swap: int) -> Conflict:
    """The error for a client that exists with another size."""
    return Conflict(
        f"client {name!r} exists with a swap of {format_size(known)}, not {format_size(swap)}",
        key="swap",
        hint=f"ask for {format_size(known)}, or remove the client and its pages first",
    )
