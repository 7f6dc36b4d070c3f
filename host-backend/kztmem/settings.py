# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon is started with, however it was said: options, file or the state directory.

Standard library only: a restarted daemon serves pages before it loads anything bigger.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from kztmem.errors import BadInput
from kztmem.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE_SIZE: Final = 4096
MAX_SWAP: Final = PAGE_SIZE << 32
"""Page numbers have 32 bits."""

MIN_MEMORY: Final = 1 << 20
MAX_MEMORY: Final = 1 << 40
"""What the arena's format allows (docs/arena.md)."""

MIN_SPILL: Final = 2 << 20
MAX_SPILL: Final = 1 << 40
"""Likewise for the spill file."""

DEFAULT_CODEC: Final = "lzo"
PERSISTENT: Final = ("zsmalloc", "xvmalloc", "zbud")
"""What may hold pages that have to stay, the default first."""
EPHEMERAL: Final = ("zbud",)
"""What may hold pages that may vanish: it has to give them up by whole frames."""
DEFAULT_DEDUP: Final = "off"
DEFAULT_WEIGHT: Final = 1
MAX_WEIGHT: Final = 65535
DEFAULT_USER: Final = "kztlab"
SOCKET_PATH_MAX: Final = 107
"""Bytes of a unix socket's path: sun_path has 108, one is the terminator."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_CODEC = re.compile(r"none|lzo|lz4|zstd(?::(?:-[1-7]|1?[0-9]))?", re.ASCII)
_DEDUP = re.compile(r"off|client|domain:[!-~]{1,32}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a client may take of the memory; None where nothing was said."""

    weight: int | None = None
    """Its share where clients compete; without, `DEFAULT_WEIGHT`."""
    cap: int | None = None
    """Most bytes of its persistent pages and their index; 0 or None: no limit of its own."""
    reservation: int | None = None
    """Bytes of them that no other client may take."""

    def changed(self, said: Terms) -> Terms:
        """These, with what `said` says."""
        return replace(self, **{key: it for key, it in asdict(said).items() if it is not None})

    def core(self) -> CoreTerms:
        """What the core is told."""
        return {
            "weight": self.weight or DEFAULT_WEIGHT,
            "cap": self.cap or None,
            "reservation": self.reservation or 0,
        }


class CoreTerms(TypedDict):
    """Terms with nothing left unsaid."""

    weight: int
    cap: int | None
    reservation: int


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """A client as it was asked for, and as it lasts."""

    swap: int
    """Size of its swap device in bytes."""
    dedup: str | None = None
    """With which pages its may share memory; None: as the daemon says for all that say nothing."""
    terms: Terms = Terms()
    """What it may take of the memory."""


@dataclass(frozen=True)
class Spill:
    """A file on a disk for pages that memory has no room for."""

    size: int
    """Its most bytes; 0: there is to be none."""
    path: Path | None = None
    """None: in the state directory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator asked for; None where nothing was said."""

    state: Path
    sockets: Path
    memory: int | None = None
    codec: str | None = None
    persistent: str | None = None
    ephemeral: str | None = None
    spill: Spill | None = None
    abandon_spilled: bool = False
    dedup: str | None = None
    user: str | None = None
    clients: dict[str, ClientSettings] = field(default_factory=dict)
    """Clients that must exist once the daemon serves."""


def check_name(name: str, *, key: str) -> str:
    """Returns the name of a client or raises `BadInput`."""
    if _NAME.fullmatch(name) is None:
        raise BadInput(
            f"{name!r} is not a client's name",
            key=key,
            hint="use 1 to 31 characters of a-z, 0-9 and '-', the first a letter",
        )
    return name


def check_swap(size: str | int, *, key: str) -> int:
    """Returns the size of a swap device in bytes or raises `BadInput`."""
    swap = parse_size(size, key=key)
    if swap % PAGE_SIZE:
        up = (swap // PAGE_SIZE + 1) * PAGE_SIZE
        raise BadInput(
            f"{swap} bytes are not whole pages of {PAGE_SIZE} bytes",
            key=key,
            hint=f"the next size up is {up}",
        )
    if swap > MAX_SWAP:
        raise BadInput(
            f"{format_size(swap)} is more than a swap device may have",
            key=key,
            hint=f"at most {format_size(MAX_SWAP)}",
        )
    return swap


def check_memory(size: str | int, *, key: str) -> int:
    """Returns the limit of the arena in bytes or raises `BadInput`."""
    memory = parse_size(size, key=key)
    if not MIN_MEMORY <= memory <= MAX_MEMORY:
        raise BadInput(
            f"{format_size(memory)} are not a limit that an arena can have",
            key=key,
            hint=f"from {format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}",
        )
    return memory


def check_spill(text: str | int, *, key: str) -> Spill:
    """Returns what `SIZE[,PATH]` or `none` say, or raises `BadInput`."""
    if text == "none":
        return Spill(0)
    size, comma, path = str(text).partition(",")
    spill = parse_size(size, key=key)
    if not MIN_SPILL <= spill <= MAX_SPILL:
        raise BadInput(
            f"{format_size(spill)} are not a limit that a spill file can have",
            key=key,
            hint=f"from {format_size(MIN_SPILL)} to {format_size(MAX_SPILL)}, or none",
        )
    if comma and not path:
        raise BadInput(f"{text!r} has no path", key=key, hint="write SIZE or SIZE,PATH")
    return Spill(spill, Path(path) if comma else None)


def check_codec(codec: str, *, key: str) -> str:
    """Returns the name of a codec or raises `BadInput`."""
    if _CODEC.fullmatch(codec) is None:
        hint = "one of lzo, lz4, zstd, zstd:LEVEL (-7 to 19) and none"
        raise BadInput(f"unknown codec {codec!r}", key=key, hint=hint)
    return codec


def check_allocator(name: str, known: Sequence[str], *, key: str) -> str:
    """Returns the name of one of these allocators or raises `BadInput`."""
    if name not in known:
        raise BadInput(f"{name!r} is no allocator", key=key, hint=f"one of {', '.join(known)}")
    return name


def check_dedup(dedup: str, *, key: str) -> str:
    """Returns a way to deduplicate or raises `BadInput`."""
    if _DEDUP.fullmatch(dedup) is None:
        hint = "one of off, client and domain:NAME (up to 32 printable characters, no spaces)"
        raise BadInput(f"unknown deduplication {dedup!r}", key=key, hint=hint)
    return dedup


def check_weight(weight: int, *, key: str) -> int:
    """Returns a client's weight or raises `BadInput`."""
    if isinstance(weight, bool) or not 1 <= weight <= MAX_WEIGHT:
        raise BadInput(f"{weight} is not a weight", key=key, hint=f"from 1 to {MAX_WEIGHT}")
    return weight


def check_bound(size: str | int, *, key: str) -> int:
    """Returns the bytes of a cap or of a reservation, 0 for `none`, or raises `BadInput`."""
    return 0 if size == "none" else parse_size(size, key=key)


def check_socket_path(path: Path, *, key: str) -> Path:
    """Returns the path of a unix socket or raises `BadInput` when the kernel would refuse it."""
    length = len(bytes(path))
    if length > SOCKET_PATH_MAX:
        raise BadInput(
            f"the socket's path {path} has {length} bytes, {SOCKET_PATH_MAX} are possible",
            key=key,
            hint="put sockets into a folder with a shorter name by --sockets DIR",
        )
    return path
