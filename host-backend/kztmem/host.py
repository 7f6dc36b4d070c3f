# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon wants from its host: shared memory, a lasting place in it, a boot's identity."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from kztmem.errors import HostUnable
from kztmem.units import format_size

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- the arena is to be shared memory


def boot_id() -> str:
    """Identifies this boot; shared memory lasts as long as it does."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def arena_path(state: Path, uid: int) -> Path:
    """Where the arena of a state directory lies when served by user `uid`."""
    return SHARED_MEMORY / f"kztmem-{uid}-{_hash(state)}"


def arenas_of(state: Path) -> list[Path]:
    """The arenas of a state directory that exist, whoever owns them."""
    ours = re.compile(rf"kztmem-[0-9]+-{_hash(state)}")
    try:
        return sorted(path for path in SHARED_MEMORY.iterdir() if ours.fullmatch(path.name))
    except OSError as error:
        raise HostUnable(
            f"cannot look into {SHARED_MEMORY}: {error.strerror}",
            hint=f"mount -t tmpfs tmpfs {SHARED_MEMORY}",
        ) from error


def _hash(state: Path) -> str:
    return hashlib.sha256(bytes(state)).hexdigest()[:8]


def check_room(arena: Path, memory: int) -> None:
    """Raises `HostUnable` unless the arena could grow to `memory` bytes right now.

    The store allocates before it touches, so that a file system that fills up later means refused
    pages and nothing worse; but a lab that can never fit should hear of it before it starts.
    """
    room = os.statvfs(arena.parent)
    held = arena.stat().st_blocks * 512 if arena.exists() else 0
    available = room.f_bavail * room.f_frsize + held
    if available < memory:
        size = room.f_blocks * room.f_frsize
        wanted = format_size(memory)
        raise HostUnable(
            f"{arena.parent} has {format_size(available)} free of {format_size(size)}, "
            f"the arena may need {wanted}",
            key="memory",
            hint=f"use --memory with less, free some of it, or make it larger: mount -o "
            f"remount,size={(size + memory - available) >> 20 or 1}m {arena.parent}",
        )
