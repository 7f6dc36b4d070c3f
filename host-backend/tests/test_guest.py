# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's ports through the daemon: its agent's reports, its sessions, and what they may be."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import port
from tests.support.daemon import Daemon

from kztmem.guest import parse
from kztmem.schemas import Client

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = tmp_path_factory.mktemp("guest") / "state"
    with Daemon(state, "--client", "a:1MiB") as daemon:
        yield daemon.start()


@pytest.fixture
def api(daemon: Daemon) -> Iterator[httpx.Client]:
    with daemon.http() as client:
        yield client


@given(JSON | st.binary())
def test_what_a_guest_says_can_be_said_again_or_is_dropped(content: object) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    stats = parse(text)
    if stats is not None:
        assert json.loads(json.dumps(stats, allow_nan=False, ensure_ascii=False).encode()) == stats


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 16000,
        b'{"a": ' + b"9" * 16000 + b"}",
        b'{"a": "\xff"}',
    ],
)
def test_what_no_json_can_hold_is_dropped(content: bytes) -> None:
    assert parse(content) is None


def test_the_last_report_is_shown(daemon: Daemon, api: httpx.Client) -> None:
    assert api.get("/v1/clients/a").json()["guest"] is None
    with _connect(daemon, "ctl") as ctl:
        for sequence, text in enumerate((b'{"mem": 1}', b'{"mem": 2}')):
            ctl.sendall(bytes(port.Frame(port.STATS, 77, sequence, text)))
        while (guest := Client.model_validate(api.get("/v1/clients/a").json()).guest) is None:
            time.sleep(0.01)
        while guest.stats != {"mem": 2}:
            guest = Client.model_validate(api.get("/v1/clients/a").json()).guest
            assert guest is not None
        assert guest.age_seconds >= 0
        # What can't be shown takes the place of what could: it is the newest.
        ctl.sendall(bytes(port.Frame(port.STATS, 77, 2, b'{"mem": "\\ud800"}')))
        while api.get("/v1/clients/a").json()["guest"] is not None:
            time.sleep(0.01)
    assert api.get("/v1/status").status_code == 200


def test_a_session_begins_as_documented(daemon: Daemon, api: httpx.Client) -> None:
    with _connect(daemon, "relay") as relay:
        reset, _ = _next(relay, b"")
        nonce = port.nonce_of(reset)
        assert reset == port.reset(nonce)
        assert nonce != 0
        for guess in (0, nonce ^ 1):
            relay.sendall(bytes(port.hello(1 << 63, guess)))
            assert _next(relay, b"") == (reset, b"")
        relay.sendall(bytes(port.hello(1 << 63, nonce, longest=4096)))
        welcome, rest = _next(relay, b"")
        assert welcome == port.Frame(
            port.WELCOME, 1 << 63, 0, struct.pack("<IIQ", 1 << 15, 0, 1 << 20)
        )
        greeting, _ = _next(relay, rest)
        assert (greeting.kind, greeting.session, greeting.sequence) == (port.DATA, 1 << 63, 0)
        assert greeting.payload[:16] == b"NBDMAGICIHAVEOPT"
        relay.sendall(b"nonsense" * 10)
        assert _next(relay, b"")[0] == reset
        client = Client.model_validate(api.get("/v1/clients/a").json())
        assert client.connections == 1
    lines = api.get("/metrics").text.splitlines()
    assert 'kztmem_relay_sessions_total{client="a"} 1.0' in lines
    assert 'kztmem_relay_damaged_frames_total{client="a"} 1.0' in lines


def test_sockets_are_the_owners(daemon: Daemon) -> None:
    paths = [Path(path) for path in daemon.ready["clients"]["a"].values()]
    assert [path.name for path in paths] == [
        f"{name}.sock" for name in ("nbd", "relay", "vhost", "tmem", "ctl")
    ]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}


def _connect(daemon: Daemon, name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(daemon.ready["clients"]["a"][name])
    return connection


def _next(connection: socket.socket, stream: bytes) -> tuple[port.Frame, bytes]:
    """The next frame a port brings, and what came after it."""
    while True:
        try:
            return port.read(stream)
        except (struct.error, ValueError):
            stream += connection.recv(1 << 16)
