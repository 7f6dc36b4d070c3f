# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd is killed under a guest's tmem load. Nothing acknowledged may be wrong afterwards."""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.support import tmem, tmem_port
from tests.support.daemon import Daemon
from tests.support.tmem_guest import Guest, Lost
from tests.support.tmem_port import EPHEMERAL, PAGE, PERSISTENT, Frame

pytestmark = pytest.mark.fault

ENODEV: Final = 19
DEPTH: Final = 32
SWAP: Final = (1, 1, 0)
INODES: Final = [(7, inode, 0) for inode in range(5)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A detached daemon with a client `a`."""
    with Daemon(tmp_path / "s", "--client", "a:1MiB", memory="64MiB") as daemon:
        yield daemon.detach()


class Load:
    """A guest that swaps and caches, many requests at a time, and the reference that it checks."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self._guest, self._random = guest, random.Random(seed)
        self._reference = tmem.Reference(roomy=True)
        self._client = self._reference.client("a")
        self._waiting: deque[Frame] = deque()
        self.answers = self.sessions = 0
        self._client.new_pool(PERSISTENT, (0, 0), guest.new_pool(PERSISTENT))
        self._begin()

    def run(self, requests: int) -> None:
        """Sends so many requests and takes what answers come."""
        for _ in range(requests):
            request = self._request()
            while len(self._waiting) >= DEPTH or self._being_read(request):
                self._receive()
            self._send(request)

    def finish(self) -> None:
        """Takes the last answers and reads every page of the swap."""
        while self._waiting:
            self._receive()
        for index in range(0, 64, 8):
            self._send(tmem_port.get(0, SWAP, index, 8))
        while self._waiting:
            self._receive()

    def _request(self) -> Frame:
        pool, object_id = (
            (0, SWAP) if self._random.random() < 0.6 else (1, self._random.choice(INODES))
        )
        index, count = self._random.randrange(60), self._random.choice([1, 1, 2, 4])
        match self._random.choice("ppppgggggffo"):
            case "p":
                pages = [self._random.randbytes(64) * (PAGE // 64) for _ in range(count)]
                return tmem_port.put(pool, object_id, index, *pages)
            case "g":
                return tmem_port.get(pool, object_id, index, count)
            case "o" if pool == 1:
                return Frame(tmem_port.FLUSH_OBJECT, pool=pool, object=object_id)
            case _:
                return tmem_port.flush(pool, object_id, index, count)

    def _being_read(self, request: Frame) -> bool:
        """Whether a request changes what another one waits for: a kernel has locked such a page.

        Repeated in their order, the read would find what was written after it the first time.
        """
        return request.op != tmem_port.GET_PAGE and any(
            waiting.op == tmem_port.GET_PAGE
            and waiting.object == request.object
            and (
                request.op == tmem_port.FLUSH_OBJECT
                or (
                    waiting.index < request.index + request.count
                    and request.index < waiting.index + waiting.count
                )
            )
            for waiting in self._waiting
        )

    def _send(self, request: Frame) -> None:
        try:
            self._waiting += self._guest.send([request])
        except OSError:
            self._waiting.append(self._guest.named(request))
            self._again()

    def _receive(self) -> None:
        try:
            reply = self._guest.receive()
        except Lost:
            self._again()
            return
        request = self._waiting.popleft()
        assert (reply.tag, reply.op) == (request.tag, request.op)
        self._check(request, reply)
        self.answers += 1

    def _check(self, request: Frame, reply: Frame) -> None:
        keys = [(request.object, request.index + n) for n in range(request.count)]
        pool = request.pool
        match request.op:
            case tmem_port.PUT_PAGE:
                for n, (key, status) in enumerate(zip(keys, reply.statuses(), strict=True)):
                    page = request.payload[n * PAGE : (n + 1) * PAGE]
                    self._client.put_page(pool, key, page, status)
            case tmem_port.GET_PAGE:
                for key, status, found in zip(keys, reply.statuses(), reply.pages(), strict=True):
                    self._client.get_page(pool, key, status, found)
            case tmem_port.FLUSH_PAGE:
                for key in keys:
                    self._client.flush_page(pool, key, reply.pool)
            case _:
                self._client.flush_object(pool, request.object, reply.pool)

    def _again(self) -> None:
        """Begins a session on a new connection and repeats what was not answered, in its order.

        The cache begins empty: requests for it are forgotten with what was in it.
        """
        while True:
            try:
                self._guest.connect()
                self._guest.begin()
                self._begin()
                repeated = [request for request in self._waiting if request.pool == 0]
                self._waiting = deque(self._guest.send(repeated))
            except (Lost, OSError):
                continue
            return

    def _begin(self) -> None:
        self.sessions += 1
        self._reference.recover()
        pool = self._guest.new_pool(EPHEMERAL)
        self._client.new_pool(EPHEMERAL, (0, 0), pool)
        assert pool == 1


def test_ten_kills_under_a_guests_load(daemon: Daemon) -> None:
    with Guest(Path(daemon.ready["clients"]["a"]["tmem"]), fresh=True) as guest:
        load = Load(guest, seed=1)
        for _ in range(10):
            load.run(400)
            os.kill(daemon.status()["pid"], signal.SIGKILL)
        load.run(400)
        load.finish()
        assert load.sessions == 11
        assert load.answers > 4000
    assert daemon.status()["recovery"]["reason"] == "recovered"
