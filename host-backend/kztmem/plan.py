# SPDX-License-Identifier: GPL-2.0-or-later
"""What will be served: settings, the record of last time and the host brought together, once.

A supervisor makes the plan before its first child and hands it to every later one: what was asked
for on the command line is done once, not again at each restart, when it may have been changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kztmem import host
from kztmem.clientsockets import ClientSockets
from kztmem.errors import BadInput, Conflict, HostUnable
from kztmem.privileges import User
from kztmem.registry import check_same
from kztmem.settings import DEFAULT_CODEC, DEFAULT_DEDUP, EPHEMERAL, PERSISTENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kztmem.settings import ClientSettings, Settings
    from kztmem.statedir import Record, StateDir

SPILL_FILE: Final = "spill"
"""Its name in the state directory."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a serving process needs to know."""

    arena: Path
    memory: int
    codec: str
    persistent: str
    ephemeral: str
    spill: tuple[Path, int] | None
    """The spill file and its most bytes."""
    abandon_spilled: bool
    dedup: str
    """What goes for clients that say nothing."""
    sockets: Path


def make_plan(settings: Settings, state: StateDir) -> Plan:
    """Settles what to serve, and writes down the clients that were asked for.

    Each setting is as asked for, else as last time, else by default. Raises `BadInput` or
    `HostUnable`, and has changed nothing then.
    """
    last = state.record()
    arena = _own_arena(state.path)
    memory = settings.memory or (last.memory if last else None)
    if memory is None:
        hint = "for example --memory 512MiB"
        raise BadInput("the first start needs a limit", key="--memory", hint=hint)
    if not arena.exists():
        host.check_room(arena, memory)
    _settle_clients(settings, state, pages_expected=last is not None and arena.exists())
    return Plan(
        arena=arena,
        memory=memory,
        codec=settings.codec or (last.codec if last else DEFAULT_CODEC),
        persistent=settings.persistent or (last.persistent if last else PERSISTENT[0]),
        ephemeral=settings.ephemeral or (last.ephemeral if last else EPHEMERAL[0]),
        spill=_spill(settings, state, last),
        abandon_spilled=settings.abandon_spilled,
        dedup=settings.dedup or (last.dedup if last else DEFAULT_DEDUP),
        sockets=settings.sockets,
    )


def _spill(settings: Settings, state: StateDir, last: Record | None) -> tuple[Path, int] | None:
    before = Path(last.spill) if last and last.spill else None
    if settings.spill is None:
        return (before, last.spill_bytes) if last and before else None
    if settings.spill.size == 0:
        return None
    path = settings.spill.path or before or state.path / SPILL_FILE
    return (path, settings.spill.size)


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


def _settle_clients(settings: Settings, state: StateDir, *, pages_expected: bool) -> None:
    remembered = state.clients()
    if remembered is None and pages_expected:
        raise HostUnable(
            "clients.json is missing, but the pages of clients may be there",
            key="--state",
            hint="restore it, or throw the pages away: --remove",
        )
    clients = _merge(remembered or {}, settings.clients)
    for name in clients:
        ClientSockets.of(settings.sockets, name).check(key=f"client {name}")
    if clients != remembered:
        state.write_clients(clients)


def _merge(
    remembered: Mapping[str, ClientSettings], wanted: Mapping[str, ClientSettings]
) -> dict[str, ClientSettings]:
    clients = {**remembered}
    for name, client in wanted.items():
        known = clients.setdefault(name, client)
        try:
            check_same(name, known, client)
        except Conflict as error:
            raise BadInput(error.message, key="--client", hint=error.hint) from error
        clients[name] = replace(known, terms=known.terms.changed(client.terms))
    return clients
