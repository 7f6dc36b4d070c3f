# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of the tmem protocol, made from docs/protocol.md and nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from tests.support.port import crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEW_POOL: Final = 1
DESTROY_POOL: Final = 2
PUT_PAGE: Final = 4
GET_PAGE: Final = 5
FLUSH_PAGE: Final = 6
FLUSH_OBJECT: Final = 7
HELLO: Final = 200
RESET: Final = 201

REPLY: Final = 1
FRESH: Final = 2

PAGE: Final = 4096
MAX_PAGES: Final = 64
MAX_FRAME: Final = 64 + MAX_PAGES * (4 + PAGE)

EPHEMERAL: Final = 1 << 24
PERSISTENT: Final = EPHEMERAL | 1

HEADER: Final = struct.Struct("<4sHHQIi3Q4I")
_LIMITS: Final = struct.Struct("<4IQ")

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "tmem.txt"

ObjectId: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """A frame, made or read; its checksum is never kept. `pool` is a reply's status."""

    op: int
    session: int = 0
    tag: int = 0
    pool: int = 0
    object: ObjectId = (0, 0, 0)
    index: int = 0
    count: int = 0
    payload: bytes = b""
    flags: int = 0

    def __bytes__(self) -> bytes:
        return self.head() + self.payload

    def head(self) -> bytes:
        """The header alone, which has the checksum of the whole."""
        return self._head(crc32c(self._head(0) + self.payload))

    def _head(self, checksum: int) -> bytes:
        start = (b"KZTM", self.op, self.flags, self.session, self.tag, self.pool, *self.object)
        return HEADER.pack(*start, self.index, self.count, len(self.payload), checksum)

    def reply(self, status: int = 0, payload: bytes = b"") -> Frame:
        """The answer to this request."""
        return replace(self, flags=REPLY, pool=status, payload=payload)

    def statuses(self) -> list[int]:
        """What became of each page, in the answer to a put or a get."""
        return [*struct.unpack_from(f"<{self.count}i", self.payload)]

    def pages(self) -> list[bytes | None]:
        """The pages that the answer to a get has."""
        at = 4 * self.count
        pages: list[bytes | None] = []
        for status in self.statuses():
            pages.append(self.payload[at : at + PAGE] if status == 1 else None)
            at += PAGE if status == 1 else 0
        return pages


def read(stream: bytes) -> tuple[Frame, bytes] | None:
    """The first frame of a stream, and the rest; raises `ValueError` if it is none."""
    if len(stream) < HEADER.size:
        return None
    magic, op, flags, session, tag, pool, o0, o1, o2, index, count, length, _ = HEADER.unpack_from(
        stream
    )
    end = HEADER.size + length
    if len(stream) < end and magic == b"KZTM" and length <= MAX_FRAME - HEADER.size:
        return None
    payload = stream[HEADER.size : end]
    frame = Frame(op, session, tag, pool, (o0, o1, o2), index, count, payload, flags)
    if bytes(frame) != stream[:end]:
        raise ValueError(f"not a frame: {stream[:100]!r}")
    return frame, stream[end:]


def hello(
    session: int,
    nonce: int,
    *,
    fresh: bool = False,
    tag: int = 0,
    version: int = 1,
    pages: int = MAX_PAGES,
    frame: int = MAX_FRAME,
) -> Frame:
    """A session begins."""
    payload = _LIMITS.pack(version, pages, frame, 0, nonce)
    return Frame(HELLO, session, tag, payload=payload, flags=FRESH if fresh else 0)


def reset(nonce: int) -> Frame:
    """There is no session, and this is the connection's nonce."""
    return Frame(RESET, payload=struct.pack("<Q", nonce))


def nonce_of(frame: Frame) -> int:
    """What a RESET tells."""
    (nonce,) = struct.unpack("<Q", frame.payload)
    return int(nonce)


def statuses(*of_pages: int) -> bytes:
    """How the payload of the answer to a put or a get begins."""
    return struct.pack(f"<{len(of_pages)}i", *of_pages)


def put(pool: int, key: ObjectId, index: int, *pages: bytes) -> Frame:
    """Pages to be stored."""
    return Frame(PUT_PAGE, 0, 0, pool, key, index, len(pages), b"".join(pages))


def get(pool: int, key: ObjectId, index: int, count: int = 1) -> Frame:
    """Pages to be fetched."""
    return Frame(GET_PAGE, 0, 0, pool, key, index, count)


def flush(pool: int, key: ObjectId, index: int, count: int = 1) -> Frame:
    """Pages to be dropped."""
    return Frame(FLUSH_PAGE, 0, 0, pool, key, index, count)


def new_pool(flags: int, uuid: tuple[int, int] = (0, 0)) -> Frame:
    """A pool to be made."""
    return Frame(NEW_POOL, object=(*uuid, 0), index=flags)


def vectors() -> Iterator[tuple[str, Frame, bytes]]:
    """Of each frame in the file of vectors: its name, the frame and its bytes."""
    for line in VECTORS.read_text(encoding="ascii").splitlines():
        if line and not line.startswith("#"):
            name, *numbers, content, head = line.split()
            op, flags, session, tag, pool, o0, o1, o2, index, count, length = (
                int(number, 0) for number in numbers
            )
            payload = _expand(content.split("+"))
            if len(payload) != length:
                raise ValueError(f"{name}: payload of {len(payload)} bytes, not {length}")
            frame = Frame(op, session, tag, pool, (o0, o1, o2), index, count, payload, flags)
            yield name, frame, bytes.fromhex(head) + payload


def _expand(parts: Sequence[str]) -> bytes:
    """Hex bytes, each part as often as it says behind a `*`."""
    pairs = (part.partition("*") for part in parts if part != "-")
    return b"".join(bytes.fromhex(once) * int(times or 1) for once, _, times in pairs)
