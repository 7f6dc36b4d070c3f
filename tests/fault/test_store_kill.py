# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that works on a store is killed between two instructions, wherever that may be.

It says after each operation how that went. The reference model repeats what was said; the store
must agree, save for the one operation that was being done: that one happened or did not.
"""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.occupancy import sampled
from tests.support.reference import ReferencePool
from tests.support.victim import INDEXES, MEMORY, OBJECTS, operations

from kztmem._core import Pool, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.victim import Operation

    from kztmem._core import ObjectId

pytestmark = pytest.mark.fault

ROOT = Path(__file__).parents[2]


def repeat(model: ReferencePool, operation: Operation, outcome: str) -> None:
    """Does one operation to the model, with the outcome that the store had."""
    name, obj, index, page = operation
    if name == "put" and outcome == "k":
        model.put(obj, index, page)
    elif name == "put":
        assert model.refuse_put(obj, index) == (outcome == "s")
    elif name == "update" and outcome == "k":
        model.update(obj, index, 1000, page[:1000])
    elif name == "flush":
        model.flush(obj, index)
    elif name == "flush_range":
        model.flush_range(obj, index, 20)


def _contents(pool: Pool) -> dict[tuple[ObjectId, int], bytes]:
    pages = {}
    for obj in OBJECTS:
        for index in range(INDEXES + 20):
            page = pool.get(obj, index)
            if page is not None:
                pages[obj, index] = page
    return pages


def _possible(model: ReferencePool, operation: Operation) -> Iterator[ReferencePool]:
    """What may be there after a kill: the last operation done, not done, or begun.

    Begun: a put may have removed the old page for lack of space, and a range may be half flushed.
    """
    name, obj, index, _page = operation
    yield model
    outcomes = "ks" if name == "put" and model.get(obj, index) is not None else "k"
    for outcome in outcomes:
        after = copy.deepcopy(model)
        repeat(after, operation, outcome)
        yield after
    if name == "flush_range":
        for count in range(1, 20):
            after = copy.deepcopy(model)
            after.flush_range(obj, index, count)
            yield after


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_loses_nothing_and_brings_nothing_back(seed: int) -> None:
    arena = Path("/dev/shm") / f"kztmem-test-{os.getpid()}-{seed}"
    model = ReferencePool()
    generator = random.Random(seed)
    try:
        for life in range(6):
            life_seed = seed * 100 + life
            with sampled(lambda: {"arena": arena}) as occupancy:
                said = _killed_work(arena, life_seed, generator.uniform(0.0, 0.1))
            print(occupancy)  # `pytest -rP` shows it
            assert occupancy.most["arena"] <= MEMORY
            todo = operations(life_seed)
            for letter in said:
                repeat(model, next(todo), letter)
            store = Store(arena=arena, memory=MEMORY, codec="lzo")
            found = _contents(store.pool("a"))
            candidates = list(_possible(model, next(todo)))
            matches = [one for one in candidates if one.pages == found]
            assert matches, f"life {life}, after {len(said)} operations"
            model = matches[0]
            assert store.usage()["pages"] == len(found)
            store.close()
    finally:
        arena.unlink(missing_ok=True)


def _killed_work(arena: Path, seed: int, after: float) -> str:
    """Runs a victim and kills it some time after its first word; all it said."""
    victim = subprocess.Popen(
        [sys.executable, "-m", "tests.support.victim", str(arena), str(seed)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert victim.stdout is not None
    first = victim.stdout.read(1)
    time.sleep(after)
    victim.kill()
    rest, _ = victim.communicate()
    return (first + rest).decode()
