# SPDX-License-Identifier: GPL-2.0-or-later
"""The store and the reference side by side: whatever is done to one is done to the other."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from errno import ENODEV
from typing import TYPE_CHECKING, Any, Final

from tests.support.mortal import MortalStore
from tests.support.tmem import EEMPTY, PAGE, POOLS_PER_CLIENT, Reference, SemanticsError

from kztmem._core import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.mortal import Call, MortalClient
    from tests.support.tmem import Key, Uuid

    from kztmem._core import Client, TmemClient

CLIENTS: Final = ("a", "b", "c")
UUIDS: Final[tuple[Uuid, ...]] = ((1, 2), (2**64 - 1, 0))
"""Every client may share the first pool, all but the last one the second."""

_SOME_KEY: Final[Key] = ((0, 0, 0), 0)

_NOISE: Final = random.Random(0).randbytes(PAGE)
_ZEROS: Final = bytes(PAGE)


def page(number: int) -> bytes:
    """The page of a number: same-filled, one of a few duplicates, compressible or not."""
    kind, rest = number & 15, number >> 4
    if kind == 0:
        return _ZEROS
    if kind == 1:
        return (rest & 0xFFFFFFFF).to_bytes(4, "little") * (PAGE // 4)
    if kind == 2:
        return number.to_bytes(8, "little") * (PAGE // 8)
    if kind == 3:
        noise = (rest & 7) * 512 + 8
        return _NOISE[:noise] + _ZEROS[noise:]
    noise = 8 + rest % 3000 if kind < 12 else PAGE
    return number.to_bytes(8, "little") + _NOISE[8:noise] + _ZEROS[noise:]


@dataclass(frozen=True)
class Shape:
    """What store is opened."""

    memory: int
    codec: str
    roomy: bool
    """Whether the memory suffices for all that is done to it."""
    dedup: str = "off"
    spill: int = 0
    """Bytes that the spill file may take; 0 for none."""


@dataclass(frozen=True)
class Op:
    """One operation of the ABI, with its arguments as the reference has them."""

    client: int
    method: str
    args: tuple[Any, ...]

    def wire(self) -> tuple[Any, ...]:
        """Its arguments as the store has them: keys and UUIDs come apart."""
        if self.method == "new_pool":
            flags, uuid = self.args
            return (flags, *uuid)
        if self.method in {"put_page", "get_page", "flush_page"}:
            pool, key, *rest = self.args
            return (pool, *key, *rest)
        return self.args


class Pair:
    """Each operation checks the store's answer; `SemanticsError` is raised for a wrong one."""

    def __init__(self, arena: Path, shape: Shape, kind: type[Store | MortalStore] = Store) -> None:
        self._arena, self.shape, self._kind = arena, shape, kind
        self.reference = Reference(roomy=shape.roomy)
        self.models = [self.reference.client(name) for name in CLIENTS]
        self.answers: Counter[tuple[str, int]] = Counter()
        """How often each method gave each answer; pool numbers count as 1."""
        for name, uuid in _may_share():
            self.reference.authorize(uuid, name)
        self._open()

    def _open(self) -> None:
        shape = self.shape
        self.store = self._kind(
            arena=self._arena,
            memory=shape.memory,
            codec=shape.codec,
            spill=(self._arena.with_suffix(".spill"), shape.spill) if shape.spill else None,
        )
        self.clients: list[Client | MortalClient]
        self.clients = [self.store.client(name, dedup=shape.dedup) for name in CLIENTS]
        self._allowances: dict[int, tuple[int, int]] = {}
        """Of capped clients: the cap, and what they may hold, which is more if they did before."""
        for name, uuid in _may_share():
            self.store.authorize(*uuid, name)

    def close(self) -> None:
        """Gives the arena up."""
        self.clients.clear()
        self.store.close()

    def do(self, client: int, method: str, *args: Any) -> None:  # noqa: ANN401  # see `Op`
        """An operation of the ABI."""
        answer = getattr(self.clients[client], method)(*Op(client, method, args).wire())
        self._note(client, method, args, answer)

    def do_all(self, ops: Sequence[Op]) -> None:
        """Operations one after the other, for one journey if the store is elsewhere."""
        if isinstance(self.store, MortalStore):
            for op, answer in zip(ops, self.store.call_all(_calls(ops)), strict=True):
                self._note(op.client, op.method, op.args, answer)
        else:
            for op in ops:
                self.do(op.client, op.method, *op.args)

    def _note(self, client: int, method: str, args: tuple[Any, ...], answer: object) -> None:
        answers = answer if isinstance(answer, tuple) else (answer,)
        getattr(self.models[client], method)(*args, *answers)
        self.answers[method, min(answers[0], 1)] += 1

    def freeze(self, client: int, *, frozen: bool) -> None:
        """The host freezes a client, or thaws it."""
        if frozen:
            self.clients[client].freeze()
        else:
            self.clients[client].thaw()
        self.models[client].frozen = frozen

    def set_cap(self, client: int, cap: int | None) -> None:
        """The host limits a client; pages that it has stay."""
        self.clients[client].set_cap(cap)
        self._allowances.pop(client, None)
        if cap is not None:
            self._allowances[client] = cap, max(cap, _charged(self.clients[client].stats()))

    def reopen(self) -> None:
        """As after a kill: nothing of the process is left, all of the arena is."""
        self.close()
        self._recover(None)

    def kill(self, ops: Sequence[Op], after: float) -> int:
        """Kills the store in the midst of operations; how many it had answered."""
        assert isinstance(self.store, MortalStore)
        answers = self.store.kill(_calls(ops), after)
        for op, answer in zip(ops, answers, strict=False):
            self._note(op.client, op.method, op.args, answer)
        self._recover(ops[len(answers)] if len(answers) < len(ops) else None)
        return len(answers)

    def _recover(self, in_flight: Op | None) -> None:
        self._open()
        self.reference.recover()
        if in_flight is not None:
            self._settle(in_flight)
        recovery = self.store.recovery
        pages = sum(len(pool.pages) for *_, pool in self.reference.persistent_pools())
        if (recovery["dropped"], recovery["pages"]) != (0, pages):
            raise SemanticsError(f"{pages} pages before, then {recovery}")

    def _settle(self, op: Op) -> None:
        """Finds out what has become of an operation that a kill has interrupted."""
        model = self.models[op.client]
        if op.method == "new_pool":
            # It is there, as a pool that holds nothing, or it is not.
            flags, uuid = op.args
            for number in set(range(POOLS_PER_CLIENT)) - set(model.pools):
                if self._answer(op.client, number, _SOME_KEY)[0] == -EEMPTY:
                    model.new_pool(flags, uuid, number)
                    break
            return
        pool_id, *args = op.args
        pool = model.pools.get(pool_id)
        if pool is None:
            return
        if op.method == "destroy_pool":
            if self._answer(op.client, pool_id, _SOME_KEY)[0] == -ENODEV:
                model.destroy_pool(pool_id, 1)
            return
        if op.method == "flush_object":
            touched = [key for key in pool.pages if key[0] == args[0]]
        else:
            touched = [args[0]]
        for key in touched:
            answer, content = self._answer(op.client, pool_id, key)
            if op.method == "put_page" and answer == 1 and content == args[1]:
                pool.pages[key] = args[1]
            elif answer != 1 and op.method != "get_page":
                pool.pages.pop(key, None)
        for key in touched:
            self.do(op.client, "get_page", pool_id, key)

    def _answer(self, client: int, pool: int, key: Key) -> tuple[int, bytes | None]:
        return self.clients[client].get_page(pool, key[0], key[1])

    def check_pages(self) -> None:
        """Gets every page there may be; shared and persistent gets leave them."""
        for client, model in enumerate(self.models):
            for pool_id, pool in model.pools.items():
                self.do_all([Op(client, "get_page", (pool_id, key)) for key in pool.pages])

    def check_figures(self) -> None:
        """The memory stays within its limit and clients within their caps; pages are counted."""
        usage = self.store.usage()
        if not usage["allocated_bytes"] <= usage["limit_bytes"] <= self.shape.memory:
            raise SemanticsError(f"{usage} of {self.shape.memory}")
        for number, (client, model) in enumerate(zip(self.clients, self.models, strict=True)):
            stats = client.stats()
            held = {pool["id"]: pool for pool in stats["pools"]}
            if set(held) != set(model.pools):
                raise SemanticsError(f"pools {sorted(model.pools)} in {stats}")
            for pool_id, pool in model.pools.items():
                pages = held[pool_id]["stored_pages"]
                if pages > len(pool.pages) or (pages < len(pool.pages) and not pool.may_vanish):
                    raise SemanticsError(f"{len(pool.pages)} pages in pool {pool_id} of {stats}")
            cap, allowance = self._allowances.get(number, (None, None))
            if cap is not None and allowance is not None:
                charged = _charged(stats)
                if charged > allowance:
                    raise SemanticsError(f"{charged} bytes of {allowance}, capped at {cap}")
                self._allowances[number] = cap, max(cap, charged)


def _charged(stats: TmemClient) -> int:
    pools = [pool for pool in stats["pools"] if pool["kind"] == "persistent"]
    return sum(pool["stored_bytes"] + pool["index_bytes"] for pool in pools)


def _calls(ops: Sequence[Op]) -> list[Call]:
    return [(CLIENTS[op.client], op.method, op.wire()) for op in ops]


def _may_share() -> Iterator[tuple[str, Uuid]]:
    for name in CLIENTS:
        yield name, UUIDS[0]
        if name != CLIENTS[-1]:
            yield name, UUIDS[1]
