# SPDX-License-Identifier: GPL-2.0-or-later
"""The state directory: who owns it now, what was served from it before, which clients it has.

    lock          held (flock) by the supervisor and the serving process; holds the latter's pid
    state.json    what the daemon served with: arena, memory, codec, allocators, dedup, boot
    clients.json  the clients, changed only by whole replacement
    kztmemd.log   output of a detached daemon

Files are opened as the user who serves, never as root: nobody gains from planting links here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from kztmem.errors import BadInput, HostUnable
from kztmem.files import damaged, read_json, write_json
from kztmem.settings import (
    EPHEMERAL,
    PERSISTENT,
    ClientSettings,
    Terms,
    check_allocator,
    check_codec,
    check_dedup,
    check_name,
    check_swap,
    check_weight,
)
from kztmem.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOCK_WAIT: Final = 5.0
"""Seconds that a dying owner is given to let go."""

_LOCK_POLL: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Record:
    """state.json: what was served last."""

    version: str
    memory: int
    codec: str
    persistent: str
    ephemeral: str
    dedup: str
    sockets: str
    boot_id: str
    arena: str | None
    """None once the arena was removed on purpose."""
    spill: str | None = None
    """The spill file, and the most bytes it may have."""
    spill_bytes: int = 0
    losses: int = 0
    """How often the arena was gone when the daemon started, as after a reboot."""


class StateDir:
    """A locked state directory.

    The lock belongs to the open file, so a forked child shares it: it is free when the last of
    supervisor and serving process is gone.
    """

    def __init__(self, path: Path) -> None:
        """Locks the directory.

        Waits up to `LOCK_WAIT` seconds; raises `HostUnable` with the owner's pid after that.
        """
        self.path = path
        self._lock = _open_lock(path / "lock")
        try:
            _acquire(self._lock, path)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Lets go of the lock, unless another process shares it."""
        os.close(self._lock)

    def write_owner(self, pid: int) -> None:
        """Says who serves, for the message that the next one gets; no reason not to serve."""
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, b"%-10d\n" % pid, 0)

    @property
    def log(self) -> Path:
        """Output of a detached daemon."""
        return self.path / "kztmemd.log"

    def record(self) -> Record | None:
        """What was served last; None the first time."""
        path = self.path / "state.json"
        data = read_json(path)
        if data is None:
            return None
        try:
            return Record(
                version=_text(data["version"]),
                memory=parse_size(_number(data["memory"]), key="memory"),
                codec=check_codec(_text(data["codec"]), key="codec"),
                persistent=_allocator(data, "persistent", PERSISTENT),
                ephemeral=_allocator(data, "ephemeral", EPHEMERAL),
                dedup=check_dedup(_text(data["dedup"]), key="dedup"),
                sockets=_text(data["sockets"]),
                boot_id=_text(data["boot_id"]),
                arena=None if data["arena"] is None else _text(data["arena"]),
                spill=None if data.get("spill") is None else _text(data["spill"]),
                spill_bytes=_number(data.get("spill_bytes", 0)),
                losses=_number(data["losses"]),
            )
        except (KeyError, TypeError, BadInput) as error:
            raise damaged(path, str(error)) from error

    def write_record(self, record: Record) -> None:
        """Remembers what is served now."""
        write_json(self.path / "state.json", asdict(record))

    def clients(self) -> dict[str, ClientSettings] | None:
        """All clients; None if no daemon ever wrote them down."""
        path = self.path / "clients.json"
        data = read_json(path)
        if data is None:
            return None
        try:
            return {
                check_name(name, key="name"): _client(name, client) for name, client in data.items()
            }
        except (KeyError, TypeError, BadInput) as error:
            raise damaged(path, str(error)) from error

    def write_clients(self, clients: Mapping[str, ClientSettings]) -> None:
        """Remembers the clients; raises `HostUnable` and changes nothing when it cannot."""
        data = {name: asdict(client) for name, client in clients.items()}
        write_json(self.path / "clients.json", data)


def _allocator(data: Mapping[str, object], key: str, known: Sequence[str]) -> str:
    return check_allocator(_text(data[key]), known, key=key)


def _client(name: str, data: object) -> ClientSettings:
    if not isinstance(data, dict):
        raise TypeError(f"{data!r} is not a client")
    dedup = data["dedup"]
    return ClientSettings(
        swap=check_swap(_number(data["swap"]), key=name),
        dedup=None if dedup is None else check_dedup(_text(dedup), key=name),
        terms=_terms(name, data["terms"]),
    )


def _terms(name: str, data: object) -> Terms:
    if not isinstance(data, dict):
        raise TypeError(f"{data!r} are not a client's terms")
    weight, cap, reservation = data["weight"], data["cap"], data["reservation"]
    return Terms(
        weight=None if weight is None else check_weight(_number(weight), key=name),
        cap=None if cap is None else _number(cap),
        reservation=None if reservation is None else _number(reservation),
    )


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostUnable(
            f"cannot open {path}: {error.strerror}",
            key="--state",
            hint="use a directory that the serving user may write to",
        ) from error


def _acquire(lock: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise HostUnable(
                    f"{path} is served by another kztmemd, pid {owner}",
                    key="--state",
                    hint=f"use it, or stop it with: kill {owner}",
                ) from None
            time.sleep(_LOCK_POLL)
        else:
            return


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a number")
    return value
