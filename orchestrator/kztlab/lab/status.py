# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab as it is now: its guests by libvirt and their consoles, its store by its API."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kztlab.errors import HostUnable
from kztlab.guest import console
from kztlab.hypervisor import GuestState, Hypervisor, session
from kztlab.lab import record
from kztlab.store import StoreClient

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.lab.record import GuestRecord, LabRecord
    from kztlab.places import Places


@dataclass(frozen=True, slots=True)
class GuestStatus:
    name: str
    frontend: str
    state: str
    """running, paused, booting, not started, panicked or gone."""
    detail: str | None
    ssh_port: int | None
    console: Path
    stored_pages: int | None
    stored_bytes: int | None

    @property
    def lost(self) -> bool:
        return self.state in {"panicked", "gone", "paused"}


@dataclass(frozen=True, slots=True)
class LabStatus:
    lab: str
    spec: Path
    accel: str | None
    run: Path | None
    store: dict[str, Any] | None
    """kztmemd's own status; None for a lab without a store."""
    store_error: str | None
    guests: list[GuestStatus]


def status(places: Places, lab: LabRecord) -> LabStatus:
    """Ask everybody; a store that does not answer is told, not raised."""
    with Hypervisor.connect(places, lab.uri) as hypervisor:
        there = {state.guest: state for state in hypervisor.list(lab.lab)}
    store, store_error = None, None
    if lab.store is not None:
        try:
            with StoreClient(lab.store.socket) as client:
                store = client.status()
        except HostUnable as error:
            store_error = error.message
    clients = {each["name"]: each for each in (store or {}).get("clients", [])}
    return LabStatus(
        lab=lab.lab,
        spec=lab.spec,
        accel=lab.accel,
        run=lab.run,
        store=store,
        store_error=store_error,
        guests=[
            _guest(guest, there.get(guest.name), clients.get(guest.client or ""))
            for guest in lab.guests.values()
        ],
    )


def _guest(
    guest: GuestRecord, state: GuestState | None, client: dict[str, Any] | None
) -> GuestStatus:
    word, detail = _condition(guest, state)
    return GuestStatus(
        name=guest.name,
        frontend=guest.spec.frontend,
        state=word,
        detail=detail,
        ssh_port=state.ssh_port if state else None,
        console=guest.console,
        stored_pages=client["stored_pages"] if client else None,
        stored_bytes=client["stored_bytes"] if client else None,
    )


def _condition(guest: GuestRecord, state: GuestState | None) -> tuple[str, str | None]:
    if state is not None:
        booting = guest.phase == "booting" and state.state == "running"
        return ("booting" if booting else state.state), None
    if guest.phase == "planned":
        return "not started", None
    panic = console.panic(guest.console)
    return ("panicked", panic) if panic else ("gone", "it was ended from outside")


def overview(places: Places) -> list[dict[str, Any]]:
    """All labs of this kztlab, also those that nothing but their guests is left of."""
    known = {name: record.readable(places, name) for name in record.names(places)}
    there: Counter[str] = Counter()
    uris = {lab.uri for lab in known.values() if lab is not None and lab.uri is not None}
    for uri in [*([None] if session.started(places) else []), *sorted(uris)]:
        with Hypervisor.connect(places, uri) as hypervisor:
            there.update(state.lab for state in hypervisor.list())
    labs = []
    for name in sorted(known.keys() | there.keys()):
        lab = known.get(name)
        guests = len(lab.guests) if lab else there[name]
        labs.append(
            {
                "lab": name,
                "state": _word(lab, there[name]),
                "running": there[name],
                "guests": guests,
                "spec": lab.spec if lab else None,
                "run": lab.run if lab else None,
            }
        )
    return labs


def _word(lab: LabRecord | None, running: int) -> str:
    if lab is None:
        return "broken"
    ready = all(guest.phase == "ready" for guest in lab.guests.values())
    return "up" if ready and running == len(lab.guests) else "partly up"
