# SPDX-License-Identifier: GPL-2.0-or-later
"""A small NBD client that outlives its server, as QEMU's does.

Requests go out without waiting for the answers of earlier ones. When the connection breaks, the
client connects again for as long as it takes and repeats every request that was not answered, in
its old order. Nothing here knows the server's code: the constants are the protocol's.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READ: Final = 0
WRITE: Final = 1
DISCONNECT: Final = 2
FLUSH: Final = 3
TRIM: Final = 4
WRITE_ZEROES: Final = 6

_NBDMAGIC: Final = 0x4E42444D41474943
_IHAVEOPT: Final = 0x49484156454F5054
_OPTION_REPLY: Final = 0x3E889045565A9
_REQUEST: Final = 0x25609513
_SIMPLE_REPLY: Final = 0x67446698
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_INFO_EXPORT: Final = 0
_CLIENT_FLAGS: Final = 3
"""Fixed newstyle, no zeroes."""

_RETRY: Final = 0.001
_PATIENCE: Final = 60.0
"""Seconds after which a server is called dead; a test's limit, not a measure of anything."""


class NbdError(Exception):
    """The server refused a request."""

    def __init__(self, error: int, request: Request) -> None:
        super().__init__(f"errno {error} for {request}")
        self.error = error


@dataclass
class Request:
    """One request and, once it has come, its answer."""

    command: int
    offset: int
    length: int
    data: bytes = b""
    error: int | None = None
    """None: not answered yet."""
    answer: bytes = b""

    def __str__(self) -> str:
        return f"command {self.command} at {self.offset}+{self.length}"


class Connection:
    """One connection after negotiation. Every method raises `OSError` when it breaks."""

    def __init__(self, path: Path, export: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(str(path))
            self.size = self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Breaks the connection without a word."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self._socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """Receives exactly so many bytes."""
        data = bytearray()
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError("the server closed the connection")
            data += chunk
        return bytes(data)

    def _negotiate(self, export: bytes) -> int:
        magic, option_magic, _flags = struct.unpack(">QQH", self.receive(18))
        assert (magic, option_magic) == (_NBDMAGIC, _IHAVEOPT)
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self.send(struct.pack(">IQII", _CLIENT_FLAGS, _IHAVEOPT, _OPT_GO, len(body)) + body)
        size = None
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", self.receive(20))
            assert magic == _OPTION_REPLY
            info = self.receive(length)
            if kind == _REP_ACK:
                assert size is not None, "the server never told the size"
                return size
            if kind != _REP_INFO:
                raise ConnectionRefusedError(f"the server answered {kind:#x}: {info!r}")
            if struct.unpack_from(">H", info)[0] == _INFO_EXPORT:
                size = int(struct.unpack_from(">Q", info, 2)[0])


class Client:
    """A device behind a server that may come and go."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: dict[int, Request] = {}
        self._cookie = 0
        self.reconnects = 0
        self._connection = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def size(self) -> int:
        """Of the device, in bytes."""
        return self._connection.size

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered."""
        return len(self._pending)

    def submit(self, request: Request) -> None:
        """Sends a request; its answer is taken by `wait` or `drain`."""
        self._cookie += 1
        self._pending[self._cookie] = request
        try:
            self._connection.send(_encode(self._cookie, request))
        except OSError:
            self._recover()

    def wait(self) -> Request:
        """The next request that is answered, in whatever order the server chose."""
        while True:
            try:
                return self._receive()
            except OSError:
                self._recover()

    def drain(self) -> None:
        """Waits for all answers; raises `NbdError` for a refused request."""
        while self._pending:
            self._check(self.wait())

    def read(self, offset: int, length: int) -> bytes:
        """Reads, with nothing else in flight."""
        return self._do(Request(READ, offset, length)).answer

    def write(self, offset: int, data: bytes) -> None:
        """Writes, with nothing else in flight."""
        self._do(Request(WRITE, offset, len(data), data))

    def trim(self, offset: int, length: int) -> None:
        """Discards, with nothing else in flight."""
        self._do(Request(TRIM, offset, length))

    def _do(self, request: Request) -> Request:
        assert not self._pending
        self.submit(request)
        self._check(self.wait())
        return request

    @staticmethod
    def _check(request: Request) -> None:
        if request.error:
            raise NbdError(request.error, request)

    def _receive(self) -> Request:
        magic, error, cookie = struct.unpack(">IIQ", self._connection.receive(16))
        assert magic == _SIMPLE_REPLY, f"not a reply: {magic:#x}"
        request = self._pending[cookie]
        if request.command == READ and not error:
            # Only a whole answer counts: broken off here, the request is repeated.
            request.answer = self._connection.receive(request.length)
        request.error = error
        del self._pending[cookie]
        return request

    def _recover(self) -> None:
        """Connects again and repeats what is pending, until that works."""
        while True:
            self._connection.close()
            self._connection = self._connect()
            self.reconnects += 1
            try:
                for cookie, request in self._pending.items():
                    self._connection.send(_encode(cookie, request))
            except OSError:
                continue
            return

    def _connect(self) -> Connection:
        return retry(lambda: Connection(self._path))


def retry(connect: Callable[[], Connection]) -> Connection:
    """Connects as soon as there is somebody who answers."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY)


def _encode(cookie: int, request: Request) -> bytes:
    head = struct.pack(
        ">IHHQQI", _REQUEST, 0, request.command, cookie, request.offset, request.length
    )
    return head + request.data
