# SPDX-License-Identifier: GPL-2.0-or-later
"""The binding: what its stub promises, and what it does with what Python gives it."""

from __future__ import annotations

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
    sockets = {name: arena.with_name(f"{name}.sock") for name in ("nbd", "relay", "vhost", "ctl")}
    server.add_client("a", 1 << 20, **sockets)
    with pytest.raises(_core.ClientExistsError):
        server.add_client("a", 1 << 20, **sockets)
    with pytest.raises(_core.NoClientError):
        server.client("b")
    assert server.clients() == server.pools() == ["a"]
    figures = server.client("a")
    assert (figures["swap_bytes"], figures["connections"]) == (1 << 20, 0)
    assert figures["latency"]["get"] == {"count": 0, "p50_us": 0, "p99_us": 0, "p999_us": 0}
    assert set(figures["relay_counters"].values()) == {0}
    assert figures["report"] is None
    # Comes last: to find the socket in use is to connect to it.
    with pytest.raises(_core.SocketError, match="in use"):
        server.add_client("b", 1 << 20, **sockets)
    with pytest.raises(ValueError, match="grace"):
        server.shutdown(-1.0)
    server.shutdown(0.5)
    assert not any(socket.exists() for socket in sockets.values())
    assert server.clients() == []
