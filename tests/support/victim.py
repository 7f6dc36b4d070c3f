# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that works on a store until it is killed: `python -m tests.support.victim ARENA SEED`.

After each operation it writes one letter: k (done), m (refused, no memory) or s (refused, no space,
the old page flushed).
"""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING, Final

from tests.support.reference import PAGE

from kztmem._core import NoMemoryError, NoSpaceError, Pool, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztmem._core import ObjectId

    Operation = tuple[str, ObjectId, int, bytes]

MEMORY: Final = 1 << 20
"""Holds about as many pages as the operations touch: some are refused."""

OBJECTS: Final[list[ObjectId]] = [(0, 0, 0), (7, 7, 7)]
INDEXES: Final = 700


def operations(seed: int) -> Iterator[Operation]:
    """The endless list of operations that a seed stands for."""
    generator = random.Random(seed)
    while True:
        name = generator.choices(["put", "update", "flush", "flush_range"], [80, 8, 10, 2])[0]
        size = generator.choice([0, 8, 100, 2000, PAGE])
        content = generator.randbytes(size)
        page = (content * (PAGE // size))[:PAGE] + content[: PAGE % size] if size else bytes(PAGE)
        yield name, generator.choice(OBJECTS), generator.randrange(INDEXES), page


def apply(pool: Pool, operation: Operation) -> bytes:
    """Does one operation to the store; a letter for how it went."""
    name, obj, index, page = operation
    try:
        if name == "put":
            pool.put(obj, index, page)
        elif name == "update":
            pool.update(obj, index, 1000, page[:1000])
        elif name == "flush":
            pool.flush(obj, index)
        else:
            pool.flush_range(obj, index, 20)
    except NoSpaceError:
        return b"s"
    except NoMemoryError:
        return b"m"
    return b"k"


def work(arena: str, seed: int) -> None:
    """What the victim does until it is killed."""
    store = Store(arena=arena, memory=MEMORY, codec="lzo")
    pool = store.pool("a")
    for operation in operations(seed):
        os.write(1, apply(pool, operation))


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
