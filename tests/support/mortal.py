# SPDX-License-Identifier: GPL-2.0-or-later
"""A store in a process of its own, which can be killed while it works."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from typing import TYPE_CHECKING, Any, Final

from kztmem._core import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from kztmem._core import Client, ObjectId, Recovery, TmemClient, Usage

    Call = tuple[str, str, tuple[Any, ...]]
    """A client's name (or none: the store), a method and its arguments."""

# Its processes are forks of one that has everything loaded and no thread.
_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class MortalClient:
    """What `_core.Client` is, elsewhere."""

    def __init__(self, store: MortalStore, name: str) -> None:
        self._store, self._name = store, name

    def _call(self, method: str, *args: object) -> Any:  # noqa: ANN401  # as the method has it
        return self._store.call((self._name, method, args))

    def new_pool(self, flags: int, uuid_lo: int, uuid_hi: int) -> int:
        """NEW_POOL."""
        return int(self._call("new_pool", flags, uuid_lo, uuid_hi))

    def destroy_pool(self, pool: int) -> int:
        """DESTROY_POOL."""
        return int(self._call("destroy_pool", pool))

    def put_page(self, pool: int, object_id: ObjectId, index: int, page: bytes) -> int:
        """PUT_PAGE."""
        return int(self._call("put_page", pool, object_id, index, page))

    def get_page(self, pool: int, object_id: ObjectId, index: int) -> tuple[int, bytes | None]:
        """GET_PAGE."""
        answer: tuple[int, bytes | None] = self._call("get_page", pool, object_id, index)
        return answer

    def flush_page(self, pool: int, object_id: ObjectId, index: int) -> int:
        """FLUSH_PAGE."""
        return int(self._call("flush_page", pool, object_id, index))

    def flush_object(self, pool: int, object_id: ObjectId) -> int:
        """FLUSH_OBJECT."""
        return int(self._call("flush_object", pool, object_id))

    def freeze(self) -> None:
        """The host's freeze."""
        self._call("freeze")

    def thaw(self) -> None:
        """The host's thaw."""
        self._call("thaw")

    def set_cap(self, cap: int | None) -> None:
        """The host's limit."""
        self._call("set_cap", cap)

    def set_compress(self, compress: bool) -> None:  # as `_core` has it
        """Whether pages are compressed from now on."""
        self._call("set_compress", compress)

    def stats(self) -> TmemClient:
        """The client's figures."""
        stats: TmemClient = self._call("stats")
        return stats


class MortalStore:
    """What `_core.Store` is, elsewhere."""

    def __init__(
        self, *, arena: Path, memory: int, codec: str, spill: tuple[Path, int] | None
    ) -> None:
        self._connection, theirs = _FORKS.Pipe()
        self._process = _FORKS.Process(target=_serve, args=(theirs, arena, memory, codec, spill))
        self._process.start()
        theirs.close()
        self.recovery: Recovery = self._connection.recv()

    def client(self, name: str, *, dedup: str) -> MortalClient:
        """A client of this store."""
        self.call(("", "client", (name, dedup)))
        return MortalClient(self, name)

    def authorize(self, uuid_lo: int, uuid_hi: int, name: str) -> None:
        """The host lets a client share a pool."""
        self.call(("", "authorize", (uuid_lo, uuid_hi, name)))

    def maintain(self) -> None:
        """A round of upkeep."""
        self.call(("", "maintain", ()))

    def usage(self) -> Usage:
        """Where the memory is."""
        usage: Usage = self.call(("", "usage", ()))
        return usage

    def call(self, call: Call) -> Any:  # noqa: ANN401  # as the method has it
        """Calls a method there."""
        return self.call_all([call])[0]

    def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Calls methods there, one after the other, for one journey."""
        self._connection.send(calls)
        answers: list[Any] = self._connection.recv()
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def kill(self, calls: Sequence[Call], after: float) -> list[Any]:
        """Sends calls, and SIGKILL after so many seconds: the answers that were given.

        The first call without an answer may have been carried out, those behind it were not begun.
        """
        for call in calls:
            self._connection.send([call])
        time.sleep(after)
        self._process.kill()
        self._process.join()
        answers: list[Any] = []
        # A reset instead of an end: some of the calls were never received.
        ends = contextlib.suppress(EOFError, ConnectionResetError)
        with contextlib.closing(self._connection), ends:
            answers.extend(self._connection.recv()[0] for _ in calls)
        return answers

    def close(self) -> None:
        """Ends the process as processes should end."""
        self._connection.close()
        self._process.join()


def _serve(
    connection: Connection, arena: Path, memory: int, codec: str, spill: tuple[Path, int] | None
) -> None:
    store = Store(arena=arena, memory=memory, codec=codec, spill=spill)
    connection.send(store.recovery)
    clients: dict[str, Client] = {}

    def answer(call: Call) -> Any:  # noqa: ANN401  # as the method has it
        name, method, args = call
        try:
            if method == "client":
                clients[args[0]] = store.client(args[0], dedup=args[1])
                return None
            return getattr(clients[name] if name else store, method)(*args)
        except Exception as error:  # noqa: BLE001  # the other side wants to know
            return error

    with contextlib.suppress(EOFError):
        while True:
            connection.send([answer(call) for call in connection.recv()])
    clients.clear()
    store.close()
