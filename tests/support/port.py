# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of a guest's virtio-serial ports, made from docs/protocol.md and nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

HELLO: Final = 1
WELCOME: Final = 2
DATA: Final = 3
STATS: Final = 4
RESET: Final = 5

HEADER: Final = struct.Struct("<4sBBHQIIII")


@dataclass(frozen=True)
class Frame:
    """A frame, made or read; its checksum is never kept."""

    kind: int
    session: int
    sequence: int = 0
    payload: bytes = b""

    def __bytes__(self) -> bytes:
        return self._head(crc32c(self._head(0) + self.payload)) + self.payload

    def _head(self, checksum: int) -> bytes:
        length = len(self.payload)
        fields = (self.kind, 0, self.session, self.sequence, length, checksum, 0)
        return HEADER.pack(b"KZTP", 1, *fields)


def read(stream: bytes) -> tuple[Frame, bytes]:
    """The first frame of a stream, and the rest; raises `ValueError` if it is none."""
    fields = HEADER.unpack_from(stream)
    kind, session, sequence, length = fields[2], fields[4], fields[5], fields[6]
    end = HEADER.size + length
    frame = Frame(kind, session, sequence, stream[HEADER.size : end])
    if bytes(frame) != stream[:end]:
        raise ValueError(f"not a frame: {stream[:end]!r}")
    return frame, stream[end:]


def hello(session: int, nonce: int, *, longest: int = 32 << 10) -> Frame:
    """A session begins."""
    return Frame(HELLO, session, payload=struct.pack("<IIQ", longest, 0, nonce))


def reset(nonce: int) -> Frame:
    """There is no session, and this is the connection's nonce."""
    return Frame(RESET, 0, payload=struct.pack("<Q", nonce))


def nonce_of(frame: Frame) -> int:
    """What a RESET tells."""
    (nonce,) = struct.unpack("<Q", frame.payload)
    return int(nonce)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), byte by byte."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[crc & 0xFF ^ byte]
    return crc ^ 0xFFFFFFFF


def _bit_by_bit(byte: int) -> int:
    crc = byte
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC32C: Final = [_bit_by_bit(byte) for byte in range(256)]
