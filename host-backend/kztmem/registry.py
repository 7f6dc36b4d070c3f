# SPDX-License-Identifier: GPL-2.0-or-later
"""The clients: which exist, where their sockets are, and how both last.

The file clients.json decides. It is written before a removal and after a creation, so a daemon that
dies in between leaves at most a pool without a client behind; the next start throws it away.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from kztmem._core import OvercommittedError, StoreError
from kztmem.clientsockets import ClientSockets
from kztmem.errors import Conflict, HostUnable, NotFound
from kztmem.settings import ClientSettings
from kztmem.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from kztmem._core import Server
    from kztmem.settings import Terms
    from kztmem.statedir import StateDir

_log = logging.getLogger(__name__)


class Registry:
    """The clients of one server. Methods may be called from any thread."""

    def __init__(self, server: Server, state: StateDir, sockets: Path, *, dedup: str) -> None:
        """`dedup` goes for clients that say nothing."""
        self._server = server
        self._state = state
        self._sockets = sockets
        self._dedup = dedup
        self._clients: dict[str, ClientSettings] = {}
        self._changing = threading.Lock()

    def recover(self) -> None:
        """Serves the clients of the state directory again; raises `HostUnable` if it cannot."""
        clients = self._state.clients()
        if clients is None:
            # Without it every pool would look like one that was being removed.
            raise HostUnable("clients.json is missing", key="--state", hint="restore it")
        for name, client in clients.items():
            self._open(name, client)
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
        return self._known(name).swap

    def dedup(self, name: str) -> str:
        """With which pages a client's may share memory; raises `NotFound`."""
        return self._known(name).dedup or self._dedup

    def _known(self, name: str) -> ClientSettings:
        try:
            return self._clients[name]
        except KeyError:
            raise no_client(name) from None

    def sockets(self, name: str) -> ClientSockets:
        """Where a client's sockets are."""
        return ClientSockets.of(self._sockets, name)

    def add(self, name: str, wanted: ClientSettings) -> bool:
        """Makes a client that serves and lasts; False if it is there already.

        Raises `Conflict` if it is another one, `HostUnable` if it cannot be written down.
        """
        with self._changing:
            if name in self._clients:
                known = self._known(name)
                check_same(name, known, wanted)
                _check_terms(name, known.terms, wanted.terms)
                return False
            self._open(name, wanted)
            try:
                self._state.write_clients(self._clients | {name: wanted})
            except HostUnable:
                self._close(name)
                raise
            self._clients = self._clients | {name: wanted}
            _log.info("client %s: made, swap of %s", name, format_size(wanted.swap))
            return True

    def change(self, name: str, *, swap: int | None, dedup: str | None, terms: Terms) -> None:
        """Settles anew what a client may take of the memory, as far as `terms` say; it lasts.

        Raises `NotFound`, `Conflict` if `swap` or `dedup`, which never change, are not what it has
        or there is not so much to be reserved, and `HostUnable` if it cannot be written down.
        Nothing has changed then.
        """
        with self._changing:
            known = self._known(name)
            check_same(name, known, ClientSettings(swap=swap or known.swap, dedup=dedup))
            terms = known.terms.changed(terms)
            if terms == known.terms:
                return
            self._settle(name, terms)
            clients = self._clients | {name: replace(known, terms=terms)}
            try:
                self._state.write_clients(clients)
            except HostUnable:
                self._settle(name, known.terms)
                raise
            self._clients = clients
            _log.info("client %s: changed, %s", name, terms.core())

    def remove(self, name: str) -> None:
        """Closes a client's connections, throws its pages away and forgets it.

        Raises `NotFound`, and `HostUnable` if that cannot be written down: then it goes on.
        """
        with self._changing:
            self._known(name)
            rest = {other: client for other, client in self._clients.items() if other != name}
            self._state.write_clients(rest)
            self._clients = rest
            self._close(name)
            _log.info("client %s: removed", name)

    def _open(self, name: str, client: ClientSettings) -> None:
        paths = self.sockets(name).check(key=name)
        try:
            paths.folder.parent.mkdir(mode=0o700, exist_ok=True)
            paths.folder.mkdir(mode=0o700, exist_ok=True)
            dedup = client.dedup or self._dedup
            self._server.add_client(
                name, client.swap, dedup=dedup, **client.terms.core(), **paths.to_json()
            )
        except OvercommittedError as error:
            raise _overcommitted(name, error) from error
        except (OSError, StoreError) as error:
            raise HostUnable(f"cannot serve it: {error}", key=name) from error

    def _settle(self, name: str, terms: Terms) -> None:
        try:
            self._server.settle(name, **terms.core())
        except OvercommittedError as error:
            raise _overcommitted(name, error) from error

    def _close(self, name: str) -> None:
        self._server.remove_client(name)
        with contextlib.suppress(OSError):
            self.sockets(name).folder.rmdir()


def no_client(name: str) -> NotFound:
    """The error for a name that no client has."""
    return NotFound(f"there is no client {name!r}", key="name")


def _overcommitted(name: str, error: OvercommittedError) -> Conflict:
    return Conflict(
        f"client {name!r} cannot have its reservation: {error}",
        key="reservation",
        hint="reserve less, for it or for others, or start the daemon with more --memory",
    )


def check_same(name: str, known: ClientSettings, wanted: ClientSettings) -> None:
    """Raises `Conflict` if a client differs from what is wanted in what never changes."""
    if wanted.swap != known.swap:
        size = format_size(known.swap)
        raise Conflict(
            f"client {name!r} exists with a swap of {size}, not {format_size(wanted.swap)}",
            key="swap",
            hint=f"ask for {size}, or remove the client and its pages first",
        )
    if wanted.dedup not in {None, known.dedup}:
        is_now = f"dedup {known.dedup}" if known.dedup else "the daemon's own dedup"
        raise Conflict(
            f"client {name!r} exists with {is_now}, not {wanted.dedup}",
            key="dedup",
            hint="leave it out, or remove the client and its pages first",
        )


def _check_terms(name: str, known: Terms, wanted: Terms) -> None:
    """Raises `Conflict` if a client has other terms than are wanted."""
    now = known.core()
    for key, value in known.changed(wanted).core().items():
        if value != now.get(key):
            raise Conflict(
                f"client {name!r} exists with another {key}",
                key=key,
                hint=f"leave it out, or change it: PATCH /v1/clients/{name}",
            )
