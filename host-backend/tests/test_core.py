# SPDX-License-Identifier: GPL-2.0-or-later
"""The binding: what its stub promises, and what it does with what Python gives it."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kztmem import _core

MEMORY = 64 << 20
OBJECT = (1, 2, 2**64 - 1)
PAGE = bytes(range(256)) * 16


@pytest.fixture
def arena() -> Iterator[Path]:
    """Where an arena may be made; a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "arena"


@pytest.fixture
def store(arena: Path) -> Iterator[_core.Store]:
    store = _core.Store(arena=arena, memory=MEMORY, codec="lzo")
    yield store
    store.close()


def test_the_stub_tells_the_truth(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    # An alias for annotations only, as the typed dictionaries are; those can be marked as such.
    allowed.write_text("kztmem._core.ObjectId\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "--allowlist", str(allowed), "kztmem._core"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_stay_with_the_allocator_that_has_them(arena: Path) -> None:
    pages: dict[int, bytes] = {}
    allocators = ["zsmalloc", "xvmalloc", "zbud", "zsmalloc"]
    for number, allocator in enumerate(allocators):
        store = _core.Store(arena=arena, memory=MEMORY, codec="lzo", persistent=allocator)
        assert store.recovery["pages"] == len(pages)
        pool = store.pool("a")
        for index in range(100 * number, 100 * number + 100):
            pages[index] = random.Random(index).randbytes(index * 10) + bytes(4096 - index * 10)
            pool.put(OBJECT, index, pages[index])
        assert all(pool.get(OBJECT, index) == page for index, page in pages.items())
        del pool
        store.close()
    with pytest.raises(ValueError, match='unknown allocator "slab"'):
        _core.Store(arena=arena, memory=MEMORY, codec="lzo", persistent="slab")


def test_pages_come_back_after_reopening(arena: Path) -> None:
    store = _core.Store(arena=str(arena), memory=MEMORY, codec="zstd:3")
    assert store.recovery["reason"] == "new"
    pool = store.pool("a")
    pool.put(OBJECT, 7, PAGE)
    pool.update(OBJECT, 8, 4090, b"tail--")
    del pool
    store.close()
    store = _core.Store(arena=str(arena), memory=MEMORY, codec="lz4")
    assert (store.recovery["reason"], store.recovery["pages"]) == ("recovered", 2)
    assert store.clients() == ["a"]
    pool = store.pool("a")
    assert pool.get(OBJECT, 7) == PAGE
    assert pool.get(OBJECT, 8) == b"\0" * 4090 + b"tail--"
    assert pool.get(OBJECT, 9) is None
    del pool
    store.close()


def test_flushes_say_what_they_found(store: _core.Store) -> None:
    pool = store.pool("a")
    for index in (0, 1, 5):
        pool.put(OBJECT, index, PAGE)
    assert pool.runs(OBJECT, 0, 6) == [(2, True), (3, False), (1, True)]
    assert [pool.flush(OBJECT, 0), pool.flush(OBJECT, 0)] == [True, False]
    assert pool.flush_range(OBJECT, 0, 3) == 1
    assert pool.flush_object(OBJECT) == 1
    assert pool.stats()["stored_pages"] == 0


def test_what_is_no_page_is_refused(store: _core.Store) -> None:
    pool = store.pool("a")
    with pytest.raises(ValueError, match="4096"):
        pool.put(OBJECT, 0, b"short")
    with pytest.raises(ValueError, match="beyond"):
        pool.update(OBJECT, 0, 4000, b"x" * 97)
    with pytest.raises(OverflowError):
        pool.get(OBJECT, 2**32)


def test_a_destroyed_pool_and_a_closed_store_are_gone(store: _core.Store) -> None:
    pool = store.pool("a")
    store.destroy_pool("a")
    with pytest.raises(_core.NoClientError):
        pool.put(OBJECT, 0, PAGE)
    with pytest.raises(_core.NoClientError):
        store.destroy_pool("a")
    store.close()
    with pytest.raises(_core.StoreError, match="closed"):
        store.usage()


def test_pages_go_to_a_disk_and_are_missed_without_it(arena: Path, tmp_path: Path) -> None:
    spill = (tmp_path / "spill", 16 << 20)
    store = _core.Store(arena=arena, memory=1 << 20, codec="none", spill=spill)
    pool = store.pool("a")
    for index in range(1000):
        pool.put(OBJECT, index, PAGE)
    usage, stats = store.usage()["spill"], pool.stats()
    assert usage is not None
    assert usage["pages"] == stats["spilled_pages"] > 700
    assert usage["limit_bytes"] == spill[1] > usage["allocated_bytes"] > usage["data_bytes"]
    assert all(pool.get(OBJECT, index) == PAGE for index in range(1000))
    assert pool.stats()["counters"]["spill_reads"] == usage["pages"]
    del pool
    store.close()
    with pytest.raises(_core.SpillError, match="missing or cut short"):
        _core.Store(arena=arena, memory=1 << 20, codec="none")
    spill[0].write_bytes(b"no spill file")
    with pytest.raises(_core.SpillError, match="not this arena's"):
        _core.Store(arena=arena, memory=1 << 20, codec="none", spill=spill)
    store = _core.Store(arena=arena, memory=1 << 20, codec="none", abandon_spilled=True)
    assert store.recovery["abandoned"] == usage["pages"]
    store.close()


def test_a_clients_tmem_operations(store: _core.Store) -> None:
    client = store.client("a", weight=3, cap=1 << 20, reservation=4096, compress=False)
    swap, cache = client.new_pool(1 << 24 | 1, 0, 0), client.new_pool(1 << 24, 5, 2**64 - 1)
    assert (swap, cache, client.new_pool(0, 0, 0)) == (0, 1, -errno.EPERM)
    for pool in (swap, cache):
        assert client.put_page(pool, OBJECT, 7, PAGE) == 1
        assert client.get_page(pool, OBJECT, 7) == (1, PAGE)
        assert client.put_page(pool, OBJECT, 8, b"short") == -errno.EFAULT
    assert client.get_page(cache, OBJECT, 7) == (-1001, None)
    client.freeze()
    assert client.put_page(swap, OBJECT, 8, PAGE) == -1000
    assert client.flush_page(swap, OBJECT, 7) == -1000
    assert client.get_page(swap, OBJECT, 7) == (-1001, None)
    client.thaw()
    assert client.flush_object(swap, OBJECT) == client.destroy_pool(cache) == 1
    assert client.get_page(-1, OBJECT, 0) == (-errno.ENODEV, None)
    client.set_cap(None)
    stats = client.stats()
    assert (stats["weight"], stats["cap_bytes"], stats["compress"]) == (3, None, False)
    assert [(pool["id"], pool["kind"]) for pool in stats["pools"]] == [(0, "persistent")]


def test_pages_share_memory_within_a_domain_alone(store: _core.Store) -> None:
    for name, dedup in [("a", "domain:x"), ("b", "domain:x"), ("c", "client"), ("d", "off")]:
        client = store.client(name, dedup=dedup)
        assert client.new_pool(1 << 24 | 1, 0, 0) == 0
        assert client.put_page(0, OBJECT, 0, PAGE) == 1
    usage = store.usage()
    assert usage["pages"] == 4
    assert usage["duplicate_pages"] == 1
    assert usage["deduplicated_bytes"] == usage["data_bytes"] // 3 + 16
    with pytest.raises(ValueError, match="domain:NAME"):
        store.client("a", dedup="always")


def test_a_pool_is_shared_by_those_that_are_authorized(store: _core.Store) -> None:
    one, two, other = (store.client(name) for name in ("one", "two", "other"))
    for name in ("one", "two"):
        store.authorize(1, 2, name)
    for client in (one, two, other):
        assert client.new_pool(1 << 24 | 2, 1, 2) == 0
    assert one.put_page(0, OBJECT, 0, PAGE) == 1
    assert two.get_page(0, OBJECT, 0) == one.get_page(0, OBJECT, 0) == (1, PAGE)
    assert other.get_page(0, OBJECT, 0) == (-1001, None)
    assert one.stats()["pools"][0]["uuid"] == (1, 2)
    store.remove_client("one")
    assert two.get_page(0, OBJECT, 0) == (1, PAGE)
    assert one.new_pool(1 << 24, 0, 0) == -errno.ENODEV


def test_an_arena_has_one_owner(arena: Path, store: _core.Store) -> None:
    assert store.usage()["limit_bytes"] == MEMORY
    with pytest.raises(_core.ArenaBusyError):
        _core.Server(arena=arena, memory=MEMORY, codec="lzo")


def test_a_file_that_is_no_arena_is_left_alone(arena: Path) -> None:
    arena.write_bytes(b"precious" * 100_000)
    with pytest.raises(_core.ArenaFormatError):
        _core.Server(arena=arena, memory=MEMORY, codec="lzo")
    assert arena.read_bytes() == b"precious" * 100_000


def test_bad_arguments_are_value_errors(arena: Path) -> None:
    with pytest.raises(ValueError, match="gzip"):
        _core.Server(arena=arena, memory=MEMORY, codec="gzip")
    with pytest.raises(_core.ArenaSpaceError):
        _core.Server(arena=arena, memory=1, codec="lzo")
    assert not arena.exists()


def test_a_servers_clients(arena: Path) -> None:
    server = _core.Server(arena=arena, memory=MEMORY, codec="lzo")
    names = ("nbd", "relay", "vhost", "tmem", "ctl")
    sockets = {name: arena.with_name(f"{name}.sock") for name in names}

    def add(name: str, *, dedup: str = "off", reservation: int = 0) -> None:
        terms = {"weight": 2, "cap": None, "reservation": reservation}
        server.add_client(name, 1 << 20, dedup=dedup, **terms, **sockets)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="domain:NAME"):
        add("a", dedup="domain:")
    with pytest.raises(_core.OvercommittedError, match="together"):
        add("a", reservation=MEMORY)
    assert server.clients() == []
    add("a")
    with pytest.raises(_core.ClientExistsError):
        add("a")
    with pytest.raises(_core.NoClientError):
        server.client("b")
    assert server.clients() == server.pools() == ["a"]
    figures = server.client("a")
    assert (figures["swap_bytes"], figures["connections"]) == (1 << 20, 0)
    assert figures["latency"]["get"] == {"count": 0, "p50_us": 0, "p99_us": 0, "p999_us": 0}
    assert set(figures["relay_counters"].values()) == {0}
    assert set(figures["tmem_counters"].values()) == {0}
    assert (figures["pools"], figures["ephemeral_bytes"]) == ([], 0)
    assert figures["report"] is None
    assert (figures["weight"], figures["cap_bytes"], figures["reservation_bytes"]) == (2, None, 0)
    server.settle("a", weight=3, cap=1 << 20, reservation=4096)
    with pytest.raises(_core.OvercommittedError):
        server.settle("a", weight=1, cap=None, reservation=MEMORY)
    with pytest.raises(_core.NoClientError):
        server.settle("b", weight=1, cap=None, reservation=0)
    figures = server.client("a")
    terms = (figures["weight"], figures["cap_bytes"], figures["reservation_bytes"])
    assert terms == (3, 1 << 20, 4096)
    assert set(server.evictions().values()) == {0}
    assert set(server.zbud().values()) == {0}
    # Comes last: to find the socket in use is to connect to it.
    with pytest.raises(_core.SocketError, match="in use"):
        add("b")
    with pytest.raises(ValueError, match="grace"):
        server.shutdown(-1.0)
    server.shutdown(0.5)
    assert not any(socket.exists() for socket in sockets.values())
    assert server.clients() == []
