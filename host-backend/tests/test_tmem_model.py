# SPDX-License-Identifier: GPL-2.0-or-later
"""The tmem ABI against the reference model: every rule of it, limits, eviction, and kills."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import event, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.support.mortal import MortalStore
from tests.support.pair import CLIENTS, UUIDS, Op, Pair, Shape, page
from tests.support.tmem import NO_UUID, PERSIST, SHARED, VERSION, Key, Uuid

from kztmem._core import Store

MIB = 1 << 20

CLIENT = st.integers(0, len(CLIENTS) - 1)
POOL = st.one_of(st.integers(0, 4), st.sampled_from([-(2**31), -1, 15, 16, 2**31 - 1]))
KIND = st.sampled_from([PERSIST, 0, SHARED])
FLAGS = st.one_of(KIND.map(lambda kind: VERSION | kind), st.integers(0, 2**32 - 1))
UUID = st.sampled_from([*UUIDS, (0, 0), NO_UUID])
OBJECT = st.sampled_from([(0, 0, 0), (0, 0, 1), (2**64 - 1, 1, 2**63)])
INDEX = st.one_of(st.integers(0, 40), st.sampled_from([511, 512, 2**18, 2**27, 2**32 - 1]))
KEY = st.tuples(OBJECT, INDEX)
PAGE = st.one_of(
    st.integers(0, 2**32).map(page),
    st.binary(max_size=8),
)
CODEC = st.sampled_from(["lzo", "lz4", "zstd:3", "none"])
DEDUP = st.sampled_from(["off", "client", "domain:a"])
SPILL = st.sampled_from([0, 2 * MIB, 16 * MIB])

OP = st.one_of(
    st.builds(lambda *args: Op(args[0], "put_page", args[1:]), CLIENT, POOL, KEY, PAGE),
    st.builds(lambda *args: Op(args[0], "put_page", args[1:]), CLIENT, POOL, KEY, PAGE),
    st.builds(lambda *args: Op(args[0], "flush_page", args[1:]), CLIENT, POOL, KEY),
    st.builds(lambda *args: Op(args[0], "flush_object", args[1:]), CLIENT, POOL, OBJECT),
    st.builds(lambda *args: Op(args[0], "new_pool", args[1:]), CLIENT, FLAGS, UUID),
    st.builds(lambda *args: Op(args[0], "destroy_pool", args[1:]), CLIENT, POOL),
)


class TmemMachine(RuleBasedStateMachine):
    """Everything is done to both; whatever the store answers, the reference must allow it."""

    kind: type[Store | MortalStore] = Store

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kztmem-test-")
        self._pair: Pair | None = None

    @property
    def pair(self) -> Pair:
        assert self._pair is not None
        return self._pair

    @initialize(codec=CODEC, roomy=st.booleans(), dedup=DEDUP, spill=SPILL)
    def start(self, codec: str, roomy: bool, dedup: str, spill: int) -> None:
        shape = Shape(64 * MIB if roomy else MIB, codec, roomy, dedup, spill)
        self._pair = Pair(Path(self._directory.name) / "arena", shape, self.kind)
        for client in range(len(CLIENTS)):
            for kind in (PERSIST, 0, SHARED):
                self.pair.do(client, "new_pool", VERSION | kind, UUIDS[0])

    def teardown(self) -> None:
        if self._pair is not None:
            self._pair.close()
        self._directory.cleanup()

    @rule(client=CLIENT, flags=FLAGS, uuid=UUID)
    def new_pool(self, client: int, flags: int, uuid: Uuid) -> None:
        self.pair.do(client, "new_pool", flags, uuid)

    @rule(client=CLIENT, pool=POOL)
    def destroy_pool(self, client: int, pool: int) -> None:
        self.pair.do(client, "destroy_pool", pool)

    @rule(client=CLIENT, pool=POOL, key=KEY, content=PAGE)
    def put_page(self, client: int, pool: int, key: Key, content: bytes) -> None:
        self.pair.do(client, "put_page", pool, key, content)

    @rule(
        client=CLIENT,
        pool=POOL,
        key=KEY,
        count=st.integers(1, 200),
        number=st.integers(0, 2**32),
        step=st.sampled_from([0, 1, 16]),
    )
    def put_many(
        self, *, client: int, pool: int, key: Key, count: int, number: int, step: int
    ) -> None:
        object_id, first = key
        keys = [(object_id, first + at) for at in range(min(count, 2**32 - first))]
        contents = [page(number + at * step) for at in range(len(keys))]
        pages = zip(keys, contents, strict=True)
        self.pair.do_all([Op(client, "put_page", (pool, *item)) for item in pages])

    @rule(client=CLIENT, pool=POOL, key=KEY)
    def get_page(self, client: int, pool: int, key: Key) -> None:
        self.pair.do(client, "get_page", pool, key)

    @rule(client=CLIENT, pool=POOL, key=KEY)
    def flush_page(self, client: int, pool: int, key: Key) -> None:
        self.pair.do(client, "flush_page", pool, key)

    @rule(client=CLIENT, pool=POOL, obj=OBJECT)
    def flush_object(self, client: int, pool: int, obj: tuple[int, int, int]) -> None:
        self.pair.do(client, "flush_object", pool, obj)

    @rule(client=CLIENT, frozen=st.booleans())
    def freeze(self, client: int, frozen: bool) -> None:
        self.pair.freeze(client, frozen=frozen)

    @rule(client=CLIENT, cap=st.one_of(st.none(), st.integers(0, 2 * MIB)))
    def set_cap(self, client: int, cap: int | None) -> None:
        if not self.pair.shape.roomy:
            self.pair.set_cap(client, cap)

    @rule(client=CLIENT, compress=st.booleans())
    def set_compress(self, client: int, compress: bool) -> None:
        self.pair.clients[client].set_compress(compress)

    @rule()
    def maintain(self) -> None:
        self.pair.store.maintain()

    @rule()
    def check_pages(self) -> None:
        self.pair.check_pages()

    @rule()
    def reopen(self) -> None:
        self.pair.reopen()
        self.pair.check_pages()

    @invariant()
    def figures_are_right(self) -> None:
        if self._pair is not None:
            self._pair.check_figures()


class MortalMachine(TmemMachine):
    """The same with a store that is killed in the midst of operations."""

    kind = MortalStore

    @rule(ops=st.lists(OP, max_size=12), after=st.floats(0, 0.001))
    def kill(self, ops: list[Op], after: float) -> None:
        answered = self.pair.kill(ops, after)
        event("killed at work" if answered < len(ops) else "killed idle")
        self.pair.check_pages()


TestTmem = TmemMachine.TestCase
TestTmem.settings = settings(max_examples=250, stateful_step_count=100)
TestMortalTmem = MortalMachine.TestCase
TestMortalTmem.settings = settings(max_examples=40, stateful_step_count=40)
