# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's tmem ports: what a guest is answered, and what a guest can do to others."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import tmem, tmem_port
from tests.support.daemon import Daemon
from tests.support.tmem_guest import Guest, Lost
from tests.support.tmem_port import EPHEMERAL, PAGE, PERSISTENT, Frame

ENOMEM = 12
ENODEV = 19
ENOSPC = 28

KEY = (1, 7, 0)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state = tmp_path_factory.mktemp("tmem") / "s"
    clients = ("--client", "a:1MiB", "--client", "b:1MiB", "--client", "full:1MiB")
    with Daemon(state, *clients, memory="16MiB") as daemon:
        yield daemon.start()


@pytest.fixture
def guest(daemon: Daemon) -> Iterator[Guest]:
    with Guest(port_of(daemon, "a"), fresh=True) as guest:
        yield guest


def port_of(daemon: Daemon, client: str) -> Path:
    return Path(daemon.ready["clients"][client]["tmem"])


def figures(daemon: Daemon, client: str) -> dict[str, Any]:
    with daemon.http() as api:
        found: dict[str, Any] = api.get(f"/v1/clients/{client}").raise_for_status().json()
        return found


def page(seed: int) -> bytes:
    """A page that shrinks to about half."""
    return random.Random(seed).randbytes(PAGE // 2) * 2


def test_a_guests_answers_are_those_of_the_reference(guest: Guest) -> None:
    random_ = random.Random(11)
    reference = tmem.Reference(roomy=True)
    client = reference.client("a")
    keys = [(object_id, index) for object_id in [(1, 2, 3), (1, 2, 4)] for index in range(4)]
    for flags in (PERSISTENT, EPHEMERAL):
        client.new_pool(flags, (0, 0), guest.new_pool(flags))
    for step in range(1500):
        pool, key = random_.choice([0, 0, 0, 1, 1, 1, 2, -1]), random_.choice(keys)
        match random_.choice("ppppgggggffo" + "dn" * (step % 50 == 0)):
            case "p":
                stored = page(random_.randrange(50))
                client.put_page(pool, key, stored, guest.put_page(pool, *key, stored))
            case "g":
                client.get_page(pool, key, *guest.get_page(pool, *key))
            case "f":
                client.flush_page(pool, key, guest.flush_page(pool, *key))
            case "o":
                client.flush_object(pool, key[0], guest.flush_object(pool, key[0]))
            case "d":
                client.destroy_pool(pool, guest.destroy_pool(pool))
            case _:
                flags = random_.choice([EPHEMERAL, PERSISTENT])
                client.new_pool(flags, (0, 0), guest.new_pool(flags))


def test_the_longest_frames_are_served(guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    pages = [page(seed) for seed in range(64)]
    assert guest.call(tmem_port.put(pool, KEY, 100, *pages)).statuses() == [1] * 64
    assert guest.call(tmem_port.get(pool, KEY, 100, 64)).pages() == pages
    assert guest.call(tmem_port.flush(pool, KEY, 110, 20)).pool == 1
    found = guest.call(tmem_port.get(pool, KEY, 100, 64))
    assert found.statuses() == [1] * 10 + [0] * 20 + [1] * 34
    assert found.pages() == [*pages[:10], *[None] * 20, *pages[30:]]
    assert guest.call(tmem_port.put(pool, KEY, 0, *pages, b"")).pool == -22
    assert guest.call(tmem_port.get(pool, KEY, 0, 65)).pool == -22


def test_many_requests_under_way_are_answered_in_order(guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    requests = []
    for seed in range(200):
        put = tmem_port.put(pool, KEY, seed % 7, page(seed))
        requests += [put, tmem_port.get(pool, KEY, seed % 7)]
    for at in range(0, len(requests), 20):
        sent = guest.send(requests[at : at + 20])
        replies = [guest.receive() for _ in sent]
        assert [reply.tag for reply in replies] == [request.tag for request in sent]
        for put, got in zip(sent[::2], replies[1::2], strict=True):
            assert got.pages() == [put.payload]


def test_a_new_session_ends_ephemeral_pools_and_a_new_guest_all(guest: Guest) -> None:
    kept, lost = guest.new_pool(PERSISTENT), guest.new_pool(EPHEMERAL)
    assert guest.put_page(kept, KEY, 0, page(1)) == guest.put_page(lost, KEY, 0, page(2)) == 1
    guest.begin()
    assert guest.get_page(lost, KEY, 0) == (-ENODEV, None)
    assert guest.get_page(kept, KEY, 0) == (1, page(1))
    guest.connect()
    guest.begin()
    assert guest.get_page(kept, KEY, 0) == (1, page(1))
    guest.begin(fresh=True)
    assert guest.get_page(kept, KEY, 0) == (-ENODEV, None)
    assert guest.new_pool(EPHEMERAL) == 0


def test_frames_of_another_session_do_nothing(daemon: Daemon, guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    old = guest.named(tmem_port.put(pool, KEY, 0, page(1)))
    guest.begin()
    assert guest.put_page(pool, KEY, 0, page(2)) == 1
    before = figures(daemon, "a")["tmem_counters"]["ignored_frames"]
    guest.socket.sendall(bytes(old) * 3)
    assert guest.get_page(pool, KEY, 0) == (1, page(2))
    again = tmem_port.hello(guest.session, guest.nonce)
    guest.socket.sendall(bytes(again))
    assert guest.get_page(pool, KEY, 0) == (1, page(2))
    assert figures(daemon, "a")["tmem_counters"]["ignored_frames"] == before + 3


def test_damage_costs_the_session_and_nothing_else(daemon: Daemon, guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    assert guest.put_page(pool, KEY, 0, page(1)) == 1
    whole = bytearray(bytes(guest.named(tmem_port.put(pool, KEY, 0, page(2)))))
    for at in (0, 4, 8, 20, 48, 56, 60, 64, 2000, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        guest.socket.sendall(damaged)
        # In the middle of a longer frame, a damaged length makes this one's end a wait.
        guest.socket.sendall(bytes(tmem_port.hello(9, 0)))
        with suppress(Lost):
            guest.receive()
        guest.begin()
        assert guest.get_page(pool, KEY, 0) == (1, page(1))
    assert figures(daemon, "a")["tmem_counters"]["damaged_frames"] > 0


def test_a_guest_that_dies_in_mid_frame_is_followed_by_another(guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    assert guest.put_page(pool, KEY, 0, page(1)) == 1
    half = bytes(guest.named(tmem_port.put(pool, KEY, 0, page(2), page(3))))[:5000]
    guest.socket.sendall(half)
    # What a new opener of the device sends comes after a silence.
    guest.begin()
    assert guest.get_page(pool, KEY, 0) == (1, page(1))


def test_a_page_cannot_speak_for_the_kernel(guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    assert guest.put_page(pool, KEY, 0, page(1)) == 1
    evil = replace(tmem_port.put(pool, KEY, 0, page(666)), session=666)
    gone = Frame(tmem_port.DESTROY_POOL, 666, pool=pool)
    content = b"".join(map(bytes, (tmem_port.hello(666, 0, fresh=True), evil, gone)))
    content += bytes(2 * PAGE - len(content) % PAGE)
    pages = [content[at : at + PAGE] for at in range(0, len(content) - PAGE + 1, PAGE)]
    whole = bytes(guest.named(tmem_port.put(pool, KEY, 1, *pages, page(2))))
    guest.socket.sendall(whole[:-100])
    with pytest.raises(Lost):
        guest.receive()
    guest.socket.sendall(whole[-100:])
    guest.begin()
    assert guest.get_page(pool, KEY, 0) == (1, page(1))
    assert guest.get_page(pool, KEY, 1) == (0, None)


def test_one_connection_is_served_at_a_time(daemon: Daemon, guest: Guest) -> None:
    pool = guest.new_pool(EPHEMERAL)
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(port_of(daemon, "a")))
        assert second.recv(100) == b""
    assert guest.put_page(pool, KEY, 0, page(1)) == 1


def test_a_guest_that_does_not_read_stops_itself_alone(daemon: Daemon, guest: Guest) -> None:
    pool = guest.new_pool(PERSISTENT)
    guest.call(tmem_port.put(pool, KEY, 0, *[page(seed) for seed in range(64)]))
    guest.socket.settimeout(1)
    flood = b"".join(bytes(guest.named(tmem_port.get(pool, KEY, 0, 64))) for _ in range(20_000))
    with pytest.raises(TimeoutError):
        guest.socket.sendall(flood)
    with Guest(port_of(daemon, "b"), fresh=True) as other:
        assert other.new_pool(PERSISTENT) == 0
        assert other.put_page(0, KEY, 0, page(1)) == 1
        assert other.get_page(0, KEY, 0) == (1, page(1))
    guest.socket.settimeout(60)
    # Hung up on, it lets the next connection in.
    guest.connect()
    guest.begin()
    assert guest.get_page(pool, KEY, 5) == (1, page(5))


def test_a_full_store_refuses_puts_and_keeps_the_rest(daemon: Daemon) -> None:
    with Guest(port_of(daemon, "full"), fresh=True) as guest:
        pool = guest.new_pool(PERSISTENT)
        noise = random.Random(3)
        held: dict[int, bytes] = {}
        for first in range(0, 6400, 64):
            pages = [noise.randbytes(PAGE) for _ in range(64)]
            statuses = guest.call(tmem_port.put(pool, KEY, first, *pages)).statuses()
            held |= {first + n: it for n, it in enumerate(pages) if statuses[n] == 1}
            if -ENOMEM in statuses:
                assert set(statuses) <= {1, -ENOMEM}
                break
        else:
            pytest.fail("25 MiB of noise in 16 MiB")
        # A put that is refused on a key that is there has flushed it.
        index = next(iter(held))
        status = guest.put_page(pool, KEY, index, noise.randbytes(PAGE))
        assert status in {1, -ENOSPC}
        assert status == 1 or guest.get_page(pool, KEY, index) == (0, None)
        del held[index]
        for index in list(held)[:500]:
            assert guest.get_page(pool, KEY, index) == (1, held[index])
        assert figures(daemon, "full")["persistent"]["counters"]["failed_puts"] > 0
        guest.begin(fresh=True)


def test_hostile_bytes_cost_their_guest_its_session_at_most(daemon: Daemon, guest: Guest) -> None:
    noise = random.Random(5)
    frames = [bytes(frame) for _, frame, _ in tmem_port.vectors()]
    with Guest(port_of(daemon, "b"), fresh=True) as other:
        assert other.new_pool(PERSISTENT) == 0
        assert other.put_page(0, KEY, 0, page(1)) == 1
        for _ in range(300):
            guest.socket.settimeout(0.01)
            hostile = bytearray(noise.choice([*frames, noise.randbytes(3000)]))
            kind = noise.randrange(4)
            if kind == 0:
                hostile = hostile[: noise.randrange(len(hostile))]
            elif kind == 1:
                hostile[noise.randrange(min(len(hostile), 80))] = noise.randrange(256)
            elif kind == 2:  # well made, of this session, and nonsense all the same
                op, count = noise.choice([0, 3, 4, 5, 6, 7, 8, 101]), noise.randrange(70)
                place = (noise.randrange(-3, 20), KEY, noise.randrange(1 << 32), count)
                frame = Frame(op, guest.session, 1, *place, noise.randbytes(noise.randrange(9000)))
                hostile = bytearray(bytes(frame))
            with suppress(TimeoutError, Lost):
                guest.socket.sendall(hostile)
                while True:
                    guest.receive()
        assert other.get_page(0, KEY, 0) == (1, page(1))
    guest.socket.settimeout(60)
    guest.connect()
    guest.begin(fresh=True)
    assert guest.new_pool(EPHEMERAL) == 0


def test_figures_are_told_by_kind_and_outlast_the_pools(daemon: Daemon, guest: Guest) -> None:
    before = figures(daemon, "a")
    pools = [guest.new_pool(flags) for flags in (PERSISTENT, EPHEMERAL)]
    for pool in pools:
        guest.call(tmem_port.put(pool, KEY, 0, page(1), page(2)))
        guest.get_page(pool, KEY, 1)
    now = figures(daemon, "a")
    assert [(pool["id"], pool["kind"]) for pool in now["pools"]] == [
        (0, "persistent"),
        (1, "ephemeral"),
    ]
    assert [pool["stored_pages"] for pool in now["pools"]] == [2, 1]
    assert (now["persistent"]["stored_pages"], now["ephemeral"]["stored_pages"]) == (2, 1)
    assert now["stored_pages"] == before["stored_pages"] + 3
    assert now["ephemeral_bytes"] > 0
    assert now["latency"]["put"]["count"] == before["latency"]["put"]["count"] + 2
    guest.begin(fresh=True)
    later = figures(daemon, "a")
    assert later["pools"] == []
    assert later["ephemeral_bytes"] == later["ephemeral"]["stored_pages"] == 0
    for kind in ("persistent", "ephemeral"):
        assert later[kind]["counters"]["puts"] == before[kind]["counters"]["puts"] + 2
        assert later[kind]["counters"]["get_hits"] == before[kind]["counters"]["get_hits"] + 1
    with daemon.http() as api:
        lines = api.get("/metrics").text.splitlines()
    puts = later["ephemeral"]["counters"]["puts"]
    assert f'kztmem_ephemeral_puts_total{{client="a"}} {float(puts)}' in lines
    assert any(line.startswith('kztmem_tmem_sessions_total{client="a"}') for line in lines)
