# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's kernel at its tmem port, as far as the store can tell: sessions, requests, replies."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from tests.support import tmem_port
from tests.support.tmem_port import Frame, nonce_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.tmem_port import ObjectId

_PATIENCE: Final = 60.0
"""Seconds after which an answer is called missing."""

_PAUSE: Final = 0.02


class Lost(Exception):  # noqa: N818  # no error: a session that has ended
    """The session is over: by a RESET, or because the host's side has hung up."""


class Guest:
    """One guest with one port. Numbers of sessions and tags are its own."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """Connects and begins a session."""
        self._path = path
        self._tags = itertools.count(1)
        self.socket = socket.socket(socket.AF_UNIX)
        self.nonce = self.session = 0
        self._stream = b""
        self.connect()
        self.begin(fresh=fresh)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def connect(self) -> None:
        """Connects anew, as QEMU does until somebody is there, and takes the RESET."""
        self.socket.close()
        deadline = time.monotonic() + _PATIENCE
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(_PATIENCE)
            self._stream = b""
            with contextlib.suppress(OSError, Lost):
                self.socket.connect(str(self._path))
                self.nonce = nonce_of(self._frame())
                return
            self.socket.close()
            assert time.monotonic() < deadline, f"nobody serves {self._path}"
            time.sleep(_PAUSE)

    def begin(self, *, fresh: bool = False) -> None:
        """Begins another session and waits for the WELCOME."""
        self.session = secrets.randbits(64) | 1
        self.socket.sendall(bytes(tmem_port.hello(self.session, self.nonce, fresh=fresh)))
        while True:
            frame = self._frame()
            if frame.op == tmem_port.RESET:
                self.nonce = nonce_of(frame)
                self.socket.sendall(bytes(tmem_port.hello(self.session, self.nonce, fresh=fresh)))
            elif frame.op == tmem_port.HELLO and frame.session == self.session:
                assert frame.pool == 0
                return

    def named(self, request: Frame) -> Frame:
        """The request as one of this session, with a tag of its own."""
        return replace(request, session=self.session, tag=next(self._tags))

    def send(self, requests: Iterable[Frame]) -> list[Frame]:
        """Sends requests without waiting for replies; what was sent."""
        sent = [self.named(request) for request in requests]
        self.socket.sendall(b"".join(map(bytes, sent)))
        return sent

    def receive(self) -> Frame:
        """The next reply; raises `Lost`."""
        frame = self._frame()
        if frame.op == tmem_port.RESET:
            self.nonce = nonce_of(frame)
            raise Lost
        assert frame.session == self.session
        return frame

    def call(self, request: Frame) -> Frame:
        """A request's reply."""
        (sent,) = self.send([request])
        reply = self.receive()
        assert reply == replace(sent, flags=tmem_port.REPLY, pool=reply.pool, payload=reply.payload)
        return reply

    def _frame(self) -> Frame:
        while (found := tmem_port.read(self._stream)) is None:
            try:
                received = self.socket.recv(1 << 18)
            except ConnectionError as error:
                raise Lost from error
            if not received:
                raise Lost
            self._stream += received
        frame, self._stream = found
        return frame

    # The operations one page at a time, with the names and answers of the store's own client.

    def new_pool(self, flags: int, uuid_lo: int = 0, uuid_hi: int = 0) -> int:
        """NEW_POOL."""
        return self.call(tmem_port.new_pool(flags, (uuid_lo, uuid_hi))).pool

    def destroy_pool(self, pool: int) -> int:
        """DESTROY_POOL."""
        return self.call(Frame(tmem_port.DESTROY_POOL, pool=pool)).pool

    def put_page(self, pool: int, key: ObjectId, index: int, page: bytes) -> int:
        """PUT_PAGE."""
        return self.call(tmem_port.put(pool, key, index, page)).statuses()[0]

    def get_page(self, pool: int, key: ObjectId, index: int) -> tuple[int, bytes | None]:
        """GET_PAGE."""
        reply = self.call(tmem_port.get(pool, key, index))
        return reply.statuses()[0], reply.pages()[0]

    def flush_page(self, pool: int, key: ObjectId, index: int) -> int:
        """FLUSH_PAGE."""
        return self.call(tmem_port.flush(pool, key, index)).pool

    def flush_object(self, pool: int, key: ObjectId) -> int:
        """FLUSH_OBJECT."""
        return self.call(Frame(tmem_port.FLUSH_OBJECT, pool=pool, object=key)).pool
