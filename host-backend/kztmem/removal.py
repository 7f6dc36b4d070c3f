# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztmemd --remove`: what a stopped daemon left outside its state directory, and its sockets."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from kztmem import host
from kztmem.clientsockets import ClientSockets
from kztmem.errors import BadInput, HostUnable
from kztmem.plan import SPILL_FILE
from kztmem.privileges import User, become
from kztmem.statedir import StateDir


def remove(path: Path, sockets: Path) -> None:
    """Removes arena, spill file and sockets; clients and settings stay. There may be none.

    `sockets` is where they are if the state directory cannot tell any more. Raises `HostUnable`
    while a daemon serves, `BadInput` for a directory of something else. As root it acts as the
    directory's owner: files of that user never make root remove something else.
    """
    try:
        if not path.exists():
            return
        if not (path / "lock").exists():
            raise BadInput(f"{path} is not a state directory of kztmemd", key="--state")
        become(User.of(path))
    except OSError as error:
        raise HostUnable(f"cannot look into {path}: {error.strerror}", key="--state") from error
    with contextlib.closing(StateDir(path)) as state:
        for arena in host.arenas_of(path):
            _unlink(arena)
        try:
            record = state.record()
        except HostUnable:
            record = None  # damaged, and perhaps the reason to remove everything
        # What no arena leads to is nobody's page any more.
        _unlink(path / SPILL_FILE)
        if record is not None and record.spill is not None:
            _unlink(Path(record.spill))
        _remove_sockets(sockets if record is None else Path(record.sockets))
        if record is not None:
            # On a full disk this fails: the next daemon will then take the arena for lost.
            with contextlib.suppress(HostUnable):
                state.write_record(replace(record, arena=None, spill=None))


def _remove_sockets(folder: Path) -> None:
    _unlink(folder / "api.sock")
    clients = folder / "clients"
    if not clients.is_dir():
        return
    for client in clients.iterdir():
        for socket in ClientSockets(client):
            _unlink(socket)
        _rmdir(client)
    _rmdir(clients)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostUnable(f"cannot remove {path}: {error.strerror}") from error


def _rmdir(path: Path) -> None:
    with contextlib.suppress(OSError):  # something else is in it, and stays
        path.rmdir()
