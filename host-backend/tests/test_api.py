# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API of a real daemon."""

import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support import nbd
from tests.support.daemon import Daemon

from kztmem.schemas import Client, Clients, Error, Status


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("api") / "state") as daemon:
        yield daemon.start()


@pytest.fixture
def api(daemon: Daemon) -> Iterator[httpx.Client]:
    with daemon.http() as client:
        yield client


@pytest.fixture
def client(api: httpx.Client) -> Iterator[dict[str, Any]]:
    """A client of 1 MiB named `web-1`."""
    made = api.post("/v1/clients", json={"name": "web-1", "swap": "1MiB"})
    assert made.status_code == 201
    yield made.json()
    api.delete("/v1/clients/web-1")


def test_status_says_what_it_should(
    daemon: Daemon, api: httpx.Client, client: dict[str, Any]
) -> None:
    status = Status.model_validate(api.get("/v1/status").json())
    assert status.pid == daemon.process.pid == daemon.ready["pid"]
    assert status.supervisor_pid is None
    assert (status.codec, status.dedup) == ("lzo", "off")
    assert (status.persistent, status.ephemeral) == ("zsmalloc", "zbud")
    assert status.arena.limit_bytes == 64 << 20
    assert Path(status.arena.path).is_file()
    assert status.recovery.reason == "new"
    assert [known.name for known in status.clients] == ["web-1"]
    assert status.clients[0].model_dump() == client


def test_a_client_keeps_its_deduplication(api: httpx.Client) -> None:
    wanted = {"name": "a", "swap": "1MiB", "dedup": "domain:lab"}
    made = api.post("/v1/clients", json=wanted)
    assert (made.status_code, made.json()["dedup"]) == (201, "domain:lab")
    for fine in (wanted, {"name": "a", "swap": "1MiB"}):
        assert api.post("/v1/clients", json=fine).status_code == 200
    for answer in (
        api.post("/v1/clients", json=wanted | {"dedup": "client"}),
        api.patch("/v1/clients/a", json={"swap": "1MiB", "dedup": "off"}),
    ):
        assert (answer.status_code, answer.json()["key"]) == (409, "dedup")
    api.delete("/v1/clients/a")
    api.post("/v1/clients", json=wanted | {"dedup": None})
    assert api.get("/v1/clients/a").json()["dedup"] == "off"
    refused = api.post("/v1/clients", json=wanted)
    assert refused.status_code == 409
    assert "the daemon's own dedup" in refused.json()["error"]
    api.delete("/v1/clients/a")
    bad = api.post("/v1/clients", json=wanted | {"dedup": "domain:a b"})
    assert (bad.status_code, bad.json()["key"]) == (400, "dedup")


def test_a_clients_terms_change_while_it_runs(api: httpx.Client) -> None:
    wanted = {"name": "a", "swap": "1MiB", "weight": 2, "cap": "8MiB", "reservation": "4MiB"}

    def terms(answer: httpx.Response) -> list[Any]:
        return [answer.json()[key] for key in ("weight", "cap_bytes", "reservation_bytes")]

    made = api.post("/v1/clients", json=wanted)
    assert (made.status_code, terms(made)) == (201, [2, 8 << 20, 4 << 20])
    for fine in (wanted, {"name": "a", "swap": "1MiB"}):
        assert api.post("/v1/clients", json=fine).status_code == 200
    for key, value in (("weight", 1), ("cap", "none"), ("reservation", "5MiB")):
        other = api.post("/v1/clients", json=wanted | {key: value})
        assert (other.status_code, other.json()["key"]) == (409, key)
        assert "PATCH" in other.json()["hint"]
    changed = api.patch("/v1/clients/a", json={"weight": 5, "cap": "none"})
    assert (changed.status_code, terms(changed)) == (200, [5, None, 4 << 20])
    for key, impossible in (("weight", 0), ("weight", 1.5), ("cap", 0), ("reservation", "1MB")):
        bad = api.patch("/v1/clients/a", json={key: impossible})
        assert (bad.status_code, bad.json()["key"]) == (400, key)
    for answer in (
        api.patch("/v1/clients/a", json={"weight": 9, "reservation": "60MiB"}),
        api.post("/v1/clients", json=wanted | {"name": "b", "reservation": "56MiB"}),
    ):
        assert (answer.status_code, answer.json()["key"]) == (409, "reservation")
    assert api.get("/v1/clients/b").status_code == 404
    assert terms(api.get("/v1/clients/a")) == [5, None, 4 << 20]
    api.delete("/v1/clients/a")
    # What it had reserved is free again.
    made = api.post("/v1/clients", json=wanted | {"reservation": "56MiB"})
    assert made.status_code == 201
    api.delete("/v1/clients/a")


def test_a_client_is_made_shown_and_removed(api: httpx.Client) -> None:
    made = api.post("/v1/clients", json={"name": "a", "swap": "1GiB"})
    assert made.status_code == 201
    client = Client.model_validate(made.json())
    assert (client.name, client.swap_bytes) == ("a", 1 << 30)
    assert stat.S_IMODE(Path(client.nbd).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(client.nbd).parent.stat().st_mode) == 0o700

    again = api.post("/v1/clients", json={"name": "a", "swap": 1 << 30})
    assert (again.status_code, again.json()) == (200, made.json())
    assert api.get("/v1/clients/a").json() == made.json()
    assert Clients.model_validate(api.get("/v1/clients").json()).clients == [client]
    assert api.patch("/v1/clients/a", json={"swap": "1GiB"}).json() == made.json()

    assert api.delete("/v1/clients/a").status_code == 204
    assert api.get("/v1/clients/a").status_code == 404
    assert not Path(client.nbd).parent.exists()


@pytest.mark.parametrize(
    ("body", "status", "key", "says"),
    [
        (b"", 400, "body", "EOF"),
        (b"{", 400, "body", "EOF"),
        (b"[]", 400, "body", "object"),
        (b"\xff", 400, "body", "JSON"),
        (b"{}", 400, "name", "this key is needed"),
        (b'{"name": "a"}', 400, "swap", "this key is needed"),
        (b'{"name": "A", "swap": 4096}', 400, "name", "not a client's name"),
        (b'{"name": "../a", "swap": 4096}', 400, "name", "not a client's name"),
        (b'{"name": 1, "swap": 4096}', 400, "name", "not a str"),
        (b'{"name": "b", "swap": 4097}', 400, "swap", "not whole pages"),
        (b'{"name": "b", "swap": 0}', 400, "swap", "out of range"),
        (b'{"name": "b", "swap": true}', 400, "swap", "not a size"),
        (b'{"name": "b", "swap": 4096.0}', 400, "swap", "not a str or int"),
        (b'{"name": "b", "swap": "1GB"}', 400, "swap", "unknown unit"),
        (b'{"name": "b", "swap": "32TiB"}', 400, "swap", "more than a swap device"),
        (b'{"name": "b", "swap": 4096, "swop": 1}', 400, "swop", "unknown key"),
        (b'{"name": "web-1", "swap": 4096}', 409, "swap", "exists with a swap of 1MiB"),
        (b" " * (1 << 20), 400, "body", "more than 65536 bytes"),
    ],
)
@pytest.mark.usefixtures("client")
def test_a_bad_client_is_refused_with_key_and_reason(
    api: httpx.Client, body: bytes, status: int, key: str, says: str
) -> None:
    before = api.get("/v1/clients").json()
    answer = api.post("/v1/clients", content=body)
    error = Error.model_validate(answer.json())
    assert (answer.status_code, error.key) == (status, key)
    assert says in error.error
    assert api.get("/v1/clients").json() == before


def test_a_size_that_is_no_whole_page_comes_with_the_next(api: httpx.Client) -> None:
    answer = api.post("/v1/clients", json={"name": "b", "swap": 5000}).json()
    assert answer["hint"] == "the next size up is 8192"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/clients/nobody", 404),
        ("DELETE", "/v1/clients/nobody", 404),
        ("PATCH", "/v1/clients/nobody", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("DELETE", "/v1/status", 405),
        ("PUT", "/v1/clients", 405),
    ],
)
def test_what_is_not_there(api: httpx.Client, method: str, path: str, status: int) -> None:
    answer = api.request(method, path)
    assert answer.status_code == status
    assert Error.model_validate(answer.json()).error


def test_a_405_names_every_method(api: httpx.Client) -> None:
    allowed = api.put("/v1/clients").headers["allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD", "POST"}


@pytest.mark.usefixtures("client")
def test_a_size_never_changes(api: httpx.Client) -> None:
    answer = api.patch("/v1/clients/web-1", json={"swap": "2MiB"})
    assert answer.status_code == 409
    assert answer.json()["key"] == "swap"


def test_removal_ends_connections(daemon: Daemon, api: httpx.Client) -> None:
    made = api.post("/v1/clients", json={"name": "c", "swap": "1MiB"}).json()
    connection = nbd.Connection(Path(made["nbd"]))
    assert api.get("/v1/clients/c").json()["connections"] == 1
    assert api.delete("/v1/clients/c").status_code == 204
    with pytest.raises(ConnectionError):
        connection.receive(1)
    connection.close()
    assert daemon.process.poll() is None


def test_status_bears_clients_that_come_and_go(daemon: Daemon, api: httpx.Client) -> None:
    done = threading.Event()

    def come_and_go() -> None:
        with daemon.http() as other:
            while not done.is_set():
                other.post("/v1/clients", json={"name": "fleeting", "swap": "1MiB"})
                other.delete("/v1/clients/fleeting")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        answers = {api.get("/v1/status").status_code for _ in range(1000)}
    finally:
        done.set()
        thread.join()
    assert answers == {200}


def test_a_removed_clients_pages_do_not_come_back(api: httpx.Client) -> None:
    for content in (b"x" * 4096, b"\0" * 4096):
        made = api.post("/v1/clients", json={"name": "d", "swap": "1MiB"}).json()
        with nbd.Client(Path(made["nbd"])) as device:
            if content[0]:
                device.write(0, content)
            assert device.read(0, 4096) == content
        api.delete("/v1/clients/d")


def test_counters_count_pages(api: httpx.Client, client: dict[str, Any]) -> None:
    with nbd.Client(Path(client["nbd"])) as device:
        device.write(0, b"".join(bytes([page]) * 2048 + b"rest" * 512 for page in range(8)))
        device.write(8 * 4096, b"\1" * 4096)
        device.read(0, 16 * 4096)
        device.trim(0, 2 * 4096)
        device.trim(0, 4 * 4096)
    after = Client.model_validate(api.get("/v1/clients/web-1").json())
    assert after.counters.puts == 9
    assert after.counters.gets == 16
    assert after.counters.get_hits == 9
    assert after.counters.flushes == 6
    assert after.counters.flush_found == 4
    assert after.stored_pages == 5
    assert after.same_filled_pages == 1
    assert after.latency.put.count == 2
    assert 0 < after.latency.put.p50_us <= after.latency.put.p999_us


@pytest.mark.usefixtures("client")
def test_metrics(api: httpx.Client) -> None:
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'kztmem_puts_total{client="web-1"} 0.0' in lines
    assert 'kztmem_swap_bytes{client="web-1"} 1.048576e+06' in lines
    assert 'kztmem_weight{client="web-1"} 1.0' in lines
    assert 'kztmem_over_cap_total{client="web-1"} 0.0' in lines
    assert 'kztmem_charged_bytes{client="web-1"} 0.0' in lines
    assert "kztmem_evicted_raw_pages_total 0.0" in lines
    assert not [line for line in lines if line.startswith("kztmem_cap_bytes{")]
    assert any(re.match(r"kztmem_arena_limit_bytes 6\.71", line) for line in lines)
    assert 'kztmem_latency_seconds_count{client="web-1",op="get"} 0.0' in lines
    documented = {line.split()[2] for line in lines if line.startswith("# HELP")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert documented == typed
    assert not [line for line in lines if line.startswith("# HELP") and len(line.split()) < 4]


def test_openapi_describes_every_path_and_every_reference_leads_somewhere(
    api: httpx.Client,
) -> None:
    document = api.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {path: set(item) for path, item in document["paths"].items()} == {
        "/v1/status": {"get"},
        "/v1/clients": {"get", "post"},
        "/v1/clients/{name}": {"get", "patch", "delete"},
    }
    references = set(re.findall(r'"#/components/schemas/(\w+)"', api.get("/openapi.json").text))
    assert references == set(document["components"]["schemas"])
    swap = document["components"]["schemas"]["ClientRequest"]["properties"]["swap"]
    assert [kind["type"] for kind in swap["anyOf"]] == ["integer", "string"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 70000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"NBDMAGICIHAVEOPT",
        b"POST /v1/clients HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/clients HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20000,
        b"POST /v1/clients HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
)
def test_garbage_ends_that_connection_and_nothing_else(
    daemon: Daemon, api: httpx.Client, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(daemon.ready["api"])
        try:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
        except ConnectionError:
            pass  # the daemon had enough before all of it was sent
    assert api.get("/v1/status").status_code == 200
    assert daemon.process.poll() is None
