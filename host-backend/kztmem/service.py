# SPDX-License-Identifier: GPL-2.0-or-later
"""The page service of one state directory: the core, its clients, and what there is to say.

Made of the standard library and the core alone, so that pages are served while the HTTP API is
still being loaded.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from kztmem import host
from kztmem._core import ArenaFormatError, ArenaSpaceError, Server, StoreError
from kztmem.errors import BadInput, HostUnable
from kztmem.privileges import User
from kztmem.registry import Registry
from kztmem.settings import DEFAULT_CODEC
from kztmem.statedir import Record
from kztmem.version import version

if TYPE_CHECKING:
    from pathlib import Path

    from kztmem.settings import Settings
    from kztmem.statedir import StateDir

_log = logging.getLogger(__name__)


class Service:
    """A store that serves its clients' pages from the moment it exists."""

    def __init__(
        self,
        settings: Settings,
        state: StateDir,
        *,
        supervisor: int | None,
        warnings: list[str],
    ) -> None:
        """Opens or recovers the arena, then the listener of each client.

        `supervisor` is the pid of the process that restarts this one, if there is one. Raises
        `BadInput` or `HostUnable`.
        """
        self._started = time.monotonic()
        self._supervisor = supervisor
        self._user = User.current().name
        last = state.record()
        arena = _own_arena(state.path)
        loss = _loss(arena, last)
        self._record = _plan(settings, arena, last, losses=int(loss is not None))
        host.check_room(arena, self._record.memory)
        self._server = _open(arena, self._record)
        found = self._server.recovery
        self._warnings = [*warnings, *found["warnings"], *_pin(self._server)]
        self._recovery = {
            "reason": loss or found["reason"],
            "pools": found["pools"],
            "pages": found["pages"],
            "dropped": found["dropped"],
            "seconds": found["seconds"],
            "losses": self._record.losses,
        }
        state.write_record(self._record)
        state.write_owner(os.getpid())
        self.registry = Registry(self._server, state, settings.sockets)
        self.registry.recover(settings.clients)

    @property
    def version(self) -> str:
        """Of the installed package."""
        return self._record.version

    def status(self) -> dict[str, Any]:
        """The body of `GET /v1/status`."""
        return {
            "version": self.version,
            "pid": os.getpid(),
            "supervisor_pid": self._supervisor if self._watched() else None,
            "user": self._user,
            "uptime_seconds": time.monotonic() - self._started,
            "codec": self._record.codec,
            "arena": {"path": self._record.arena, **self._server.status()},
            "recovery": self._recovery,
            "warnings": self.warnings(),
            "clients": self.clients(),
        }

    def describe(self) -> str:
        """For the log: clients, and what was found of their pages."""
        names = ", ".join(self.registry.names()) or "no client yet"
        found = self._recovery
        took = f"{found['seconds']:.3f} s"
        return f"{names}; arena {found['reason']}, {found['pages']} pages, {took}"

    def warnings(self) -> list[str]:
        """What is worse than it could be."""
        if self._supervisor is None or self._watched():
            return self._warnings
        gone = f"the supervisor (pid {self._supervisor}) is gone: nobody restarts this daemon"
        return [*self._warnings, gone]

    def clients(self) -> list[dict[str, Any]]:
        """The body of `GET /v1/clients`, without its frame."""
        return [self.client(name) for name in self.registry.names()]

    def client(self, name: str) -> dict[str, Any]:
        """The body of `GET /v1/clients/NAME`; raises `NotFound`."""
        return {
            "name": name,
            "swap_bytes": self.registry.swap(name),
            "nbd": str(self.registry.nbd(name)),
            **self._server.client(name),
        }

    def shutdown(self, grace: float) -> None:
        """Ends all connections; requests already read get up to `grace` seconds."""
        self._server.shutdown(grace)

    def _watched(self) -> bool:
        return self._supervisor is not None and os.getppid() == self._supervisor


def _open(arena: Path, record: Record) -> Server:
    try:
        return Server(arena=arena, memory=record.memory, codec=record.codec)
    except ArenaSpaceError as error:
        hint = "start it with a --memory that holds what is there and fits the host"
        raise HostUnable(str(error), key="--memory", hint=hint) from error
    except ArenaFormatError as error:
        hint = "serve it with the version that made it, or throw its pages away: --remove"
        raise HostUnable(str(error), key="--state", hint=hint) from error
    except StoreError as error:
        raise HostUnable(str(error), key="--state") from error


def _pin(server: Server) -> list[str]:
    """Locks the arena in memory; returns what stands in the way."""
    try:
        server.pin()
    except (
        MemoryError,
        OSError,
    ) as error:  # ENOMEM, beyond the limit of locked memory, is the former
        way_out = "ulimit -l unlimited, or start it as root"
        return [f"the host may swap the store: cannot lock it: {error} ({way_out})"]
    return []


def _own_arena(state: Path) -> Path:
    """Where this user's arena is; raises `HostUnable` if the pages are in another user's."""
    arena = host.arena_path(state, os.geteuid())
    for other in host.arenas_of(state):
        if other != arena:
            raise HostUnable(
                f"this state directory was served by another user: its pages are in {other}",
                key="--user",
                hint=f"serve as {User.of(other).name}, or throw the pages away: --remove",
            )
    return arena


def _loss(arena: Path, last: Record | None) -> str | None:
    """Why the arena that was there is gone; None if it is not."""
    if last is None or last.arena is None or arena.exists():
        return None
    return "lost" if last.boot_id == host.boot_id() else "reboot"


def _plan(settings: Settings, arena: Path, last: Record | None, *, losses: int) -> Record:
    """What to serve with: as asked for, else as last time, else by default."""
    memory = settings.memory or (last.memory if last else None)
    if memory is None:
        hint = "for example --memory 512MiB"
        raise BadInput("the first start needs a limit", key="--memory", hint=hint)
    return Record(
        version=version(),
        memory=memory,
        codec=settings.codec or (last.codec if last else DEFAULT_CODEC),
        sockets=str(settings.sockets),
        boot_id=host.boot_id(),
        arena=str(arena),
        losses=losses + (last.losses if last else 0),
    )
