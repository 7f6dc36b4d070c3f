# SPDX-License-Identifier: GPL-2.0-or-later
"""The page service of one state directory: the core, its clients, and what there is to say.

Made of the standard library and the core alone, so that pages are served while the HTTP API is
still being loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kztmem import host
from kztmem._core import (
    ArenaFormatError,
    ArenaSpaceError,
    NoClientError,
    Server,
    SpillError,
    StoreError,
)
from kztmem.errors import HostUnable, NotFound
from kztmem.guest import guest
from kztmem.privileges import User
from kztmem.registry import Registry, no_client
from kztmem.statedir import Record
from kztmem.version import version

if TYPE_CHECKING:
    from kztmem.plan import Plan
    from kztmem.statedir import StateDir

_log = logging.getLogger(__name__)


class Service:
    """A store that serves its clients' pages from the moment it exists."""

    def __init__(
        self,
        plan: Plan,
        state: StateDir,
        *,
        supervisor: int | None,
        warnings: list[str],
    ) -> None:
        """Opens or recovers the arena, then the listener of each client.

        `supervisor` is the pid of the process that restarts this one, if there is one. Raises
        `HostUnable`.
        """
        self._started = time.monotonic()
        self._supervisor = supervisor
        self._user = User.current().name
        last = state.record()
        loss = _loss(plan.arena, last)
        if loss and last and last.spill:
            # Nothing leads there any more, and a new arena would not take it for its own.
            _remove(Path(last.spill))
        self._server = _open(plan)
        found = self._server.recovery
        reason = loss or found["reason"]
        losses = (last.losses if last else 0) + (reason in {"lost", "reboot"})
        self._record = Record(
            version=version(),
            memory=plan.memory,
            codec=plan.codec,
            persistent=plan.persistent,
            ephemeral=plan.ephemeral,
            dedup=plan.dedup,
            sockets=str(plan.sockets),
            boot_id=host.boot_id(),
            arena=str(plan.arena),
            spill=str(plan.spill[0]) if plan.spill else None,
            spill_bytes=plan.spill[1] if plan.spill else 0,
            losses=losses,
        )
        self._warnings = [*warnings, *found["warnings"], *_pin(self._server)]
        self._recovery = {
            "reason": reason,
            "pools": found["pools"],
            "pages": found["pages"],
            "dropped": found["dropped"],
            "abandoned": found["abandoned"],
            "seconds": found["seconds"],
            "losses": losses,
        }
        if self._record != last:
            state.write_record(self._record)
        state.write_owner(os.getpid())
        self.registry = Registry(self._server, state, plan.sockets, dedup=plan.dedup)
        self.registry.recover()

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
            "persistent": self._record.persistent,
            "ephemeral": self._record.ephemeral,
            "dedup": self._record.dedup,
            **self._memory(),
            "recovery": self._recovery,
            "warnings": self.warnings(),
            "clients": self.clients(),
        }

    def _memory(self) -> dict[str, Any]:
        """What is taken of memory and disk."""
        usage: dict[str, Any] = {**self._server.status()}
        spill = usage.pop("spill")
        return {
            "arena": {"path": self._record.arena, **usage},
            "zbud": self._server.zbud(),
            "evictions": self._server.evictions(),
            "spill": spill and {"path": self._record.spill, **spill},
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
        found = []
        for name in self.registry.names():
            with contextlib.suppress(NotFound):  # removed since it was listed
                found.append(self.client(name))
        return found

    def client(self, name: str) -> dict[str, Any]:
        """The body of `GET /v1/clients/NAME`; raises `NotFound`."""
        swap, dedup = self.registry.swap(name), self.registry.dedup(name)
        try:
            stats = self._server.client(name)
        except NoClientError as error:  # it is being removed by another thread
            raise no_client(name) from error
        return {
            "name": name,
            "swap_bytes": swap,
            "dedup": dedup,
            **self.registry.sockets(name).to_json(),
            **{key: value for key, value in stats.items() if key != "report"},
            "guest": guest(stats["report"]),
        }

    def shutdown(self, grace: float) -> None:
        """Ends all connections; requests already read get up to `grace` seconds."""
        self._server.shutdown(grace)

    def _watched(self) -> bool:
        return self._supervisor is not None and os.getppid() == self._supervisor


def _open(plan: Plan) -> Server:
    try:
        return Server(
            arena=plan.arena,
            memory=plan.memory,
            codec=plan.codec,
            persistent=plan.persistent,
            spill=plan.spill,
            abandon_spilled=plan.abandon_spilled,
        )
    except ArenaSpaceError as error:
        hint = "start it with a --memory that holds what is there and fits the host"
        raise HostUnable(str(error), key="--memory", hint=hint) from error
    except ArenaFormatError as error:
        hint = "serve it with the version that made it, or throw its pages away: --remove"
        raise HostUnable(str(error), key="--state", hint=hint) from error
    except SpillError as error:
        hint = "give the file that it had, or give its pages up: --abandon-spilled"
        raise HostUnable(str(error), key="--spill", hint=hint) from error
    except StoreError as error:
        raise HostUnable(str(error), key="--state") from error


def _remove(spill: Path) -> None:
    try:
        spill.unlink(missing_ok=True)
    except OSError as error:
        raise HostUnable(f"cannot remove {spill}: {error.strerror}", key="--spill") from error


def _pin(server: Server) -> list[str]:
    """Locks the arena in memory; returns what stands in the way."""
    try:
        server.pin()
    except (MemoryError, OSError) as error:
        # Beyond the limit the kernel's answer is ENOMEM, which arrives as the former.
        way_out = "allow it to lock memory: ulimit -l unlimited"
        return [f"the host may swap the store: cannot lock it: {error} ({way_out})"]
    return []


def _loss(arena: Path, last: Record | None) -> str | None:
    """Why the arena that was there is gone; None if it is not."""
    if last is None or last.arena is None or arena.exists():
        return None
    return "lost" if last.boot_id == host.boot_id() else "reboot"
