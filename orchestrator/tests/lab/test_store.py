# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a lab's own kztmemd, with a real one."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput, HostUnable
from kztlab.spec import StoreSpec
from kztlab.spec.check import reservable
from kztlab.store import Daemon, StoreClient, StoreRefused, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SPEC = StoreSpec(memory=16 * MIB, codec="lz4")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """pytest's own folders are too deep for sockets."""
    home = Path(tempfile.mkdtemp(prefix="kzt-"))
    made = Daemon(home / "store", home / "run", None)
    yield made
    made.stop()
    made.remove()
    shutil.rmtree(home)


def arenas(daemon: Daemon) -> list[Path]:
    name = hashlib.sha256(bytes(daemon.state.resolve())).hexdigest()[:8]
    return list(Path("/dev/shm").glob(f"kztmem-*-{name}"))


def test_it_starts_serves_and_leaves_nothing(daemon: Daemon) -> None:
    assert not daemon.serves()
    daemon.start(SPEC)
    assert daemon.serves()
    assert len(arenas(daemon)) == 1
    with StoreClient(daemon.api) as store:
        status = store.status()
    assert status["codec"] == "lz4"
    assert status["arena"]["limit_bytes"] == 16 * MIB
    daemon.stop()
    assert not daemon.serves()
    daemon.remove()
    assert arenas(daemon) == []
    assert not list(daemon.sockets.rglob("*.sock"))


def test_stopping_and_removing_again_is_fine(daemon: Daemon) -> None:
    daemon.stop()
    daemon.remove()
    daemon.start(SPEC)
    for _ in range(2):
        daemon.stop()
        daemon.remove()


def test_clients_come_and_go(daemon: Daemon) -> None:
    daemon.start(SPEC)
    with StoreClient(daemon.api) as store:
        client = store.add_client("a", 8 * MIB, dedup="client")
        assert client.swap_bytes == 8 * MIB
        assert client.nbd.is_socket()
        assert store.add_client("a", 8 * MIB, dedup="client") == client
        with pytest.raises(StoreRefused) as refused:
            store.add_client("a", 4 * MIB, dedup="client")
        assert refused.value.status == 409
        store.remove_client("a")
        store.remove_client("a")
        assert not client.nbd.exists()
        assert store.add_client("a", 4 * MIB, dedup="client").swap_bytes == 4 * MIB


def test_a_clients_terms_reach_the_store(daemon: Daemon) -> None:
    daemon.start(SPEC)
    most = reservable(SPEC.memory)
    with StoreClient(daemon.api) as store:
        for _ in range(2):
            store.add_client("a", MIB, dedup="off", weight=2, cap=2 * MIB, reservation=MIB)
        (client,) = store.status()["clients"]
        assert [client[key] for key in ("weight", "cap_bytes", "reservation_bytes")] == [
            2,
            2 * MIB,
            MIB,
        ]
        with pytest.raises(StoreRefused, match="another cap"):
            store.add_client("a", MIB, dedup="off", weight=2, reservation=MIB)
        with pytest.raises(StoreRefused, match="cannot have its reservation"):
            store.add_client("b", MIB, dedup="off", reservation=most - MIB + 1)
        store.add_client("b", MIB, dedup="off", reservation=most - MIB)


def test_a_killed_one_is_back_and_can_still_be_stopped(daemon: Daemon) -> None:
    daemon.start(SPEC)
    with StoreClient(daemon.api) as store:
        pid = store.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    daemon.stop()
    assert not daemon.serves()


def test_one_whose_supervisor_is_gone_can_be_stopped(daemon: Daemon) -> None:
    daemon.start(SPEC)
    with StoreClient(daemon.api) as store:
        supervisor = store.status()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    daemon.stop()
    assert not daemon.serves()


def test_what_the_daemon_refuses_is_told_in_its_words(daemon: Daemon) -> None:
    daemon.start(SPEC)
    with pytest.raises(HostUnable, match=r"kztmemd: .*another kztmemd"):
        daemon.start(SPEC)


def test_a_socket_path_that_is_too_long_is_bad_input(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with pytest.raises(BadInput, match="107"):
        Daemon(tmp_path / "state", deep, None).start(SPEC)


class _Stranger(BaseHTTPRequestHandler):
    """Says yes to everything."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_somebody_else_on_the_socket_is_the_hosts_fault(daemon: Daemon) -> None:
    daemon.sockets.mkdir()
    with UnixStreamServer(str(daemon.api), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with (
                StoreClient(daemon.api) as store,
                pytest.raises(HostUnable, match="describes no client"),
            ):
                store.add_client("a", 4096, dedup="client")
        finally:
            server.shutdown()
            thread.join()


def test_nobody_there_is_told_with_the_socket(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreUnreachable, match=r"none\.sock"),
        StoreClient(tmp_path / "none.sock") as s,
    ):
        s.status()
