# SPDX-License-Identifier: GPL-2.0-or-later
"""The store against the reference model, in arenas so small that they fill up."""

import random
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import event, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from tests.support.reference import PAGE, ReferencePool

from kztmem._core import (
    NoClientError,
    NoMemoryError,
    NoSpaceError,
    Pool,
    Store,
)

MEMORY = 1 << 20
"""The smallest arena: it holds fewer than 250 pages that do not shrink."""

CLIENTS = st.sampled_from(["a", "b", "web-1"])
OBJECTS = st.sampled_from([(0, 0, 0), (0, 0, 1), (2**64 - 1, 1, 2**63)])
INDEXES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([511, 512, 2**18 - 1, 2**18, 2**27, 2**32 - 1]),
)


def _page(kind: str, seed: int) -> bytes:
    generator = random.Random(seed)
    if kind == "zero":
        return bytes(PAGE)
    if kind == "same":
        return generator.randbytes(8) * (PAGE // 8)
    if kind == "text":
        return (generator.randbytes(40).hex().encode() * 52)[:PAGE]
    if kind == "half":
        return generator.randbytes(PAGE // 2) + bytes(PAGE // 2)
    return generator.randbytes(PAGE)


# Those that fill an arena twice as often as the others.
KINDS = st.sampled_from(["zero", "same", "text", "half", "random", "half", "random"])
PAGES = st.builds(_page, KINDS, st.integers(0, 2**32))
CODECS = st.sampled_from(["lzo", "lz4", "zstd:3", "none"])


class StoreMachine(RuleBasedStateMachine):
    """Every operation is done to both; whatever the store answers, the model must agree."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir="/dev/shm")
        self._models: dict[str, ReferencePool] = {}
        self._pools: dict[str, Pool] = {}
        self._store: Store | None = None

    @initialize(codec=CODECS)
    def start(self, codec: str) -> None:
        self._open(codec)
        assert self.store.recovery["reason"] == "new"

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    def _open(self, codec: str) -> None:
        arena = Path(self._directory.name) / "arena"
        self._store = Store(arena=arena, memory=MEMORY, codec=codec)

    def teardown(self) -> None:
        self._pools.clear()
        if self._store is not None:
            self._store.close()
        self._directory.cleanup()

    def _pool(self, client: str) -> Pool:
        """A client's pool, made when it is first wanted."""
        if client not in self._pools:
            self._pools[client] = self.store.pool(client)
            self._models[client] = ReferencePool()
        return self._pools[client]

    @rule(client=CLIENTS, obj=OBJECTS, index=INDEXES, page=PAGES)
    def put(self, client: str, obj: tuple[int, int, int], index: int, page: bytes) -> None:
        self._put(client, obj, index, page)

    @rule(
        client=CLIENTS,
        obj=OBJECTS,
        first=st.integers(0, 200),
        count=st.integers(1, 250),
        pages=st.tuples(KINDS, st.integers(0, 2**32)),
    )
    def put_many(
        self,
        *,
        client: str,
        obj: tuple[int, int, int],
        first: int,
        count: int,
        pages: tuple[str, int],
    ) -> None:
        kind, seed = pages
        for index in range(first, first + count):
            self._put(client, obj, index, _page(kind, seed + index))

    def _put(self, client: str, obj: tuple[int, int, int], index: int, page: bytes) -> None:
        pool, model = self._pool(client), self._models[client]
        try:
            pool.put(obj, index, page)
        except NoSpaceError:
            event("a page was flushed for lack of space")
            assert model.refuse_put(obj, index), "no space for a page that was not there"
        except NoMemoryError:
            event("a new page was refused")
            assert not model.refuse_put(obj, index), "no memory for a page that was there"
        else:
            model.put(obj, index, page)

    @rule(
        client=CLIENTS,
        obj=OBJECTS,
        index=INDEXES,
        start=st.integers(0, PAGE),
        data=st.binary(max_size=64),
    )
    def update(
        self, client: str, obj: tuple[int, int, int], index: int, start: int, data: bytes
    ) -> None:
        data = data[: PAGE - start]
        try:
            self._pool(client).update(obj, index, start, data)
        except NoMemoryError:
            pass  # nothing has changed
        else:
            self._models[client].update(obj, index, start, data)

    @rule(client=CLIENTS, obj=OBJECTS, index=INDEXES)
    def get(self, client: str, obj: tuple[int, int, int], index: int) -> None:
        found = self._pool(client).get(obj, index)
        assert found == self._models[client].get(obj, index)

    @rule(client=CLIENTS, obj=OBJECTS, index=INDEXES)
    def flush(self, client: str, obj: tuple[int, int, int], index: int) -> None:
        found = self._pool(client).flush(obj, index)
        assert found == self._models[client].flush(obj, index)

    @rule(
        client=CLIENTS,
        obj=OBJECTS,
        first=st.integers(0, 300),
        count=st.integers(0, 300),
    )
    def flush_range(self, client: str, obj: tuple[int, int, int], first: int, count: int) -> None:
        found = self._pool(client).flush_range(obj, first, count)
        assert found == self._models[client].flush_range(obj, first, count)

    @rule(client=CLIENTS, obj=OBJECTS)
    def flush_object(self, client: str, obj: tuple[int, int, int]) -> None:
        found = self._pool(client).flush_object(obj)
        assert found == self._models[client].flush_object(obj)

    @rule(
        client=CLIENTS,
        obj=OBJECTS,
        first=st.integers(0, 600),
        count=st.integers(0, 600),
    )
    def runs(self, client: str, obj: tuple[int, int, int], first: int, count: int) -> None:
        found: list[tuple[int, bool]] = []
        for length, there in self._pool(client).runs(obj, first, count):
            # The store may split a run, where its index has a seam.
            if found and found[-1][1] == there:
                length += found.pop()[0]  # noqa: PLW2901
            found.append((length, there))
        assert found == list(self._models[client].runs(obj, first, count))

    @rule(client=CLIENTS)
    def destroy(self, client: str) -> None:
        pool = self._pool(client)
        self.store.destroy_pool(client)
        del self._pools[client], self._models[client]
        with pytest.raises(NoClientError):
            pool.put((0, 0, 0), 0, bytes(PAGE))
        with pytest.raises(NoClientError):
            self.store.destroy_pool(client)

    @rule()
    def maintain(self) -> None:
        self.store.maintain()

    @rule(codec=CODECS)
    def reopen(self, codec: str) -> None:
        """As after a kill: nothing of the process is left, everything of the arena is."""
        self._pools.clear()
        self.store.close()
        self._open(codec)
        recovery = self.store.recovery
        assert recovery["reason"] == "recovered"
        assert recovery["dropped"] == 0
        assert recovery["pages"] == self._count()
        assert sorted(self.store.clients()) == sorted(self._models)
        for client in self._models:
            self._pools[client] = self.store.pool(client)
        self.check_every_page()

    @rule()
    def check_every_page(self) -> None:
        for client, model in self._models.items():
            for (obj, index), page in model.pages.items():
                assert self._pools[client].get(obj, index) == page
            assert self._pools[client].stats()["stored_pages"] == len(model.pages)

    def _count(self) -> int:
        return sum(len(model.pages) for model in self._models.values())

    @invariant()
    def memory_is_accounted(self) -> None:
        if self._store is None:
            return
        usage = self._store.usage()
        assert usage["pages"] == self._count()
        assert usage["allocated_bytes"] <= usage["limit_bytes"] <= MEMORY


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=200, stateful_step_count=40)


def _fill(pool: Pool, first: int, kind: str) -> int:
    """Puts new pages from `first` on until one is refused, and returns its number."""
    for index in range(first, first + 20_000):
        try:
            pool.put((0, 0, 0), index, _page(kind, index))
        except NoMemoryError:
            return index
    pytest.fail("the arena never fills up")


def test_a_full_arena_refuses_new_pages_and_flushes_those_that_grow(tmp_path: Path) -> None:
    """The machine above is worth something only if arenas this small do fill up."""
    store = Store(arena=tmp_path / "arena", memory=MEMORY, codec="lzo")
    pool = store.pool("a")
    held = _fill(pool, 0, "random")
    assert 100 < held < 250
    pool.put((0, 0, 0), 0, _page("text", 0))
    # A page that does not shrink had a frame of its own, which has room for more of these.
    assert _fill(pool, held, "text") > held, "its old room is not used again"
    with pytest.raises(NoSpaceError):
        pool.put((0, 0, 0), 0, _page("random", 0))
    assert pool.get((0, 0, 0), 0) is None
    assert pool.get((0, 0, 0), 1) == _page("random", 1)
    assert pool.stats()["counters"]["failed_puts"] == 3
    store.close()
