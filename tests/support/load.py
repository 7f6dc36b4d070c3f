# SPDX-License-Identifier: GPL-2.0-or-later
"""A load that knows what every page must hold and checks each one it reads."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from tests.support.nbd import READ, TRIM, WRITE, Request

if TYPE_CHECKING:
    from tests.support.nbd import Client

PAGE: Final = 4096
DEPTH: Final = 16
"""Requests in flight: as many as QEMU's client sends."""


def page(index: int, version: int) -> bytes:
    """Content of a page: distinct for every index and version, and cheap to compress."""
    return struct.pack(">QQ", index + 1, version) * (PAGE // 16) if version else bytes(PAGE)


class Load:
    """Random writes, reads and discards with `DEPTH` in flight, each page in one of them at most.

    So what a page must hold is known whatever order the server chooses and however often an
    unanswered request is repeated.
    """

    def __init__(self, client: Client, *, pages: int, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._versions = [0] * pages
        self._busy: dict[int, int] = {}
        """Version that each page in flight has once its request is answered."""
        self._next = 1
        self.bad_pages: list[int] = []
        self.answers = 0

    def fill_pipe(self) -> None:
        """Sends requests until `DEPTH` are in flight, and takes no answer."""
        while self._client.in_flight < DEPTH:
            self._submit()

    def run(self, requests: int) -> None:
        """Lets so many requests be answered."""
        for _ in range(requests):
            self.fill_pipe()
            self._take()

    def finish(self) -> None:
        """Takes what is in flight, then reads and checks every page."""
        while self._client.in_flight:
            self._take()
        for index in range(len(self._versions)):
            self._check(index, self._client.read(index * PAGE, PAGE))

    def _submit(self) -> None:
        index = self._random.randrange(len(self._versions))
        while index in self._busy:
            index = self._random.randrange(len(self._versions))
        command = self._random.choices([WRITE, READ, TRIM], [6, 3, 1])[0]
        version = {WRITE: self._next, READ: self._versions[index], TRIM: 0}[command]
        self._next += 1
        self._busy[index] = version
        data = page(index, version) if command == WRITE else b""
        self._client.submit(Request(command, index * PAGE, PAGE, data))

    def _take(self) -> None:
        request = self._client.wait()
        self.answers += 1
        index = request.offset // PAGE
        version = self._busy.pop(index)
        assert request.error == 0, request
        if request.command == READ:
            self._check(index, request.answer)
        else:
            self._versions[index] = version

    def _check(self, index: int, found: bytes) -> None:
        if found != page(index, self._versions[index]):
            self.bad_pages.append(index)


def fill(client: Client, pages: int) -> None:
    """Writes version 1 of the first `pages` pages."""
    for first in range(0, pages, 32):
        client.write(first * PAGE, _chunk(first, pages))


def count_bad(client: Client, pages: int) -> int:
    """How many of the first `pages` pages are not what `fill` wrote."""
    bad = 0
    for first in range(0, pages, 32):
        expected = _chunk(first, pages)
        found = client.read(first * PAGE, len(expected))
        if found != expected:
            bad += sum(
                found[at : at + PAGE] != expected[at : at + PAGE]
                for at in range(0, len(expected), PAGE)
            )
    return bad


def _chunk(first: int, pages: int) -> bytes:
    return b"".join(page(index, 1) for index in range(first, min(first + 32, pages)))
