# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking a lab down: whole, half-made, or known to libvirt alone; as often as one likes."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable, KztlabError
from kztlab.hypervisor import Hypervisor, session
from kztlab.lab import lock, record
from kztlab.parallel import in_parallel
from kztlab.store import Daemon, StoreClient, StoreUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.lab.progress import Progress
    from kztlab.lab.record import LabRecord
    from kztlab.places import Places


def down(places: Places, lab: str, progress: Progress) -> bool:
    """End the lab's guests and store and remove all it has but its runs; False if it had nothing.

    Raises `HostUnable` if another command is at work on it, or if something cannot be ended; what
    is still there is then still listed.
    """
    there = places.lab(record.check_name(lab)).exists()
    with lock.locked(places, lab):
        return down_locked(places, lab, progress) or there


def down_locked(places: Places, lab: str, progress: Progress) -> bool:
    """`down` for a caller that holds the lab's lock; whether there was anything on record."""
    known = record.readable(places, lab)  # a damaged one must not keep it from going down
    with Hypervisor.connect(places, known.uri if known else None) as hypervisor:
        there = end_guests(hypervisor, lab, progress) or known is not None
    _end_store(places, lab, known, progress)
    _remove(places.sockets(lab))
    _remove_lab(places.lab(lab))
    if there:
        progress.done(lab, "down")
    return there


def everything(places: Places) -> list[str]:
    """Every lab of this kztlab: those with a folder, and those that only libvirt knows."""
    labs = set(record.names(places))
    if session.started(places):
        with Hypervisor.connect(places) as hypervisor:
            labs |= {state.lab for state in hypervisor.list()}
    return sorted(labs)


def release_host(places: Places) -> None:
    """When the last lab is down, end what all of them shared: root's own libvirtd."""
    session.stop(places, needed=lambda: bool(record.names(places)))


def end_guests(hypervisor: Hypervisor, lab: str, progress: Progress) -> bool:
    """End whatever libvirt has of this lab; whether there was any."""
    guests = [state.guest for state in hypervisor.list(lab)]

    def end(guest: str) -> None:
        progress.step(guest, "ending")
        hypervisor.destroy(lab, guest)
        progress.done(guest, "ended")

    results = in_parallel({guest: partial(end, guest) for guest in guests}, threading.Event())
    for result in results.values():
        if isinstance(result, KztlabError):
            raise result
    return bool(guests)


def daemon(places: Places, lab: str) -> Daemon:
    """The lab's own store, whether it has one or not."""
    return Daemon(places.lab(lab) / "store", places.sockets(lab), places.user)


def _end_store(places: Places, lab: str, known: LabRecord | None, progress: Progress) -> None:
    own = daemon(places, lab)
    if own.state.exists():
        progress.step("store", "stopping")
        own.stop()
        own.remove()
        progress.done("store", "stopped")
    elif known is not None and known.store is not None:
        _leave(known.store.socket, known, progress)


def _leave(socket: Path, known: LabRecord, progress: Progress) -> None:
    """Take the lab's clients out of the store it had joined; that store goes on."""
    try:
        with StoreClient(socket) as store:
            for guest in known.guests.values():
                if guest.client:
                    store.remove_client(guest.client)
    except StoreUnreachable as error:
        progress.note(f"the store's clients stay: {error.message}")


def _remove_lab(folder: Path) -> None:
    """The record goes last, so that an interrupted `down` leaves the lab listed; the lock's file
    and the folder go when the lock is let go."""
    for path in folder.iterdir():
        if path.name not in {record.FILE, lock.FILE}:
            _remove(path)
    (folder / record.FILE).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise HostUnable(f"cannot remove {path}: {error.strerror}") from error
