# SPDX-License-Identifier: GPL-2.0-or-later
"""Random operations in volume, against the reference: `python -m tests.support.volume --help`.

The work is cut into episodes: a new store each, whose shape and operations follow from the seed and
the episode's number alone, never from an answer. So a part of an episode can be done again; when
store and reference differ, it is cut down to as few steps as still make them differ.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.occupancy import sampled
from tests.support.pair import CLIENTS, UUIDS, Pair, Shape, page
from tests.support.tmem import NO_UUID, PERSIST, SHARED, VERSION, SemanticsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.support.occupancy import Occupancy
    from tests.support.tmem import Key, ObjectId

EPISODE: Final = 50_000
"""Steps of an episode."""

_MIB: Final = 1 << 20
_SHRINKING_SECONDS: Final = 120

_OBJECTS: Final[tuple[ObjectId, ...]] = ((0, 0, 0), (0, 0, 1), (7, 1 << 40, 3), (2**64 - 1,) * 3)
_FAR: Final = (511, 512, 2**18 - 1, 2**18, 2**27, 2**32 - 1)
_POOLS: Final = (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 16, -1)
_KINDS: Final = (
    VERSION | PERSIST,
    VERSION,
    VERSION | SHARED,
    VERSION | PERSIST,
    VERSION,
    VERSION | PERSIST | SHARED,
)
"""Flags of the pools each client begins with; the last are refused."""

_WEIGHTS: Final = {
    "put": 400,
    "get": 320,
    "flush": 100,
    "put_run": 10,
    "get_run": 10,
    "flush_object": 5,
    "new_pool": 4,
    "destroy_pool": 1,
    "freeze": 0.3,
    "thaw": 3,
    "set_cap": 0.3,
    "set_compress": 0.3,
    "maintain": 4,
    "check_figures": 4,
    "no_page": 1,
    "check_pages": 0.05,
    "reopen": 0.05,
}


class Step(NamedTuple):
    """One operation; `number` gives the page its content."""

    name: str
    client: int
    pool: int
    key: Key
    number: int


def shape(seed: int, episode: int) -> Shape:
    """What store an episode has."""
    draw = random.Random(f"shape {seed} {episode}")
    roomy = draw.random() < 0.25
    memory = 128 if roomy else draw.choice([1, 1, 2, 4])
    return Shape(
        memory * _MIB,
        draw.choice(["lzo", "lzo", "lz4", "zstd:1", "none"]),
        roomy,
        draw.choice(["off", "off", "client", "domain:a"]),
        draw.choice([0, 0, 2, 4, 64]) * _MIB,
    )


def steps(seed: int, episode: int, count: int) -> list[Step]:
    """What is done in an episode."""
    draw = random.Random(f"steps {seed} {episode}")
    bits = draw.getrandbits
    names = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=count)
    made = []
    for name in names:
        number = bits(64)
        # A key is met again and again: half of them are a few dozen.
        index = number >> 8 & 63 if number & 1 else number >> 8 & 511
        if number & 0xFE == 0:
            index = _FAR[index % len(_FAR)]
        key = (_OBJECTS[number >> 20 & 3], index)
        made.append(
            Step(name, (number >> 24) % len(CLIENTS), _POOLS[number >> 32 & 15], key, number)
        )
    return made


def _run(step: Step) -> list[tuple[Key, int]]:
    """Neighbours of a step's key, each with a number of its own."""
    object_id, first = step.key
    count = min(step.number >> 40 & 63, 2**32 - first)
    return [((object_id, first + at), step.number + at) for at in range(count)]


def _put(pair: Pair, step: Step) -> None:
    pair.do(step.client, "put_page", step.pool, step.key, page(step.number))


def _put_run(pair: Pair, step: Step) -> None:
    for key, number in _run(step):
        pair.do(step.client, "put_page", step.pool, key, page(number))


def _get_run(pair: Pair, step: Step) -> None:
    for key, _ in _run(step):
        pair.do(step.client, "get_page", step.pool, key)


def _new_pool(pair: Pair, step: Step) -> None:
    uuid = (*UUIDS, NO_UUID)[(step.number >> 40) % 3]
    pair.do(step.client, "new_pool", _KINDS[(step.number >> 44) % len(_KINDS)], uuid)


def _set_cap(pair: Pair, step: Step) -> None:
    if not pair.shape.roomy:
        cap = pair.shape.memory * (step.number >> 40 & 7) // 8
        pair.set_cap(step.client, cap or None)


_DO: Final[dict[str, Callable[[Pair, Step], None]]] = {
    "put": _put,
    "get": lambda pair, step: pair.do(step.client, "get_page", step.pool, step.key),
    "flush": lambda pair, step: pair.do(step.client, "flush_page", step.pool, step.key),
    "put_run": _put_run,
    "get_run": _get_run,
    "flush_object": lambda p, step: p.do(step.client, "flush_object", step.pool, step.key[0]),
    "new_pool": _new_pool,
    "destroy_pool": lambda pair, step: pair.do(step.client, "destroy_pool", step.pool),
    "freeze": lambda pair, step: pair.freeze(step.client, frozen=True),
    "thaw": lambda pair, step: pair.freeze(step.client, frozen=False),
    "maintain": lambda pair, _: pair.store.maintain(),
    "set_cap": _set_cap,
    "set_compress": lambda p, step: p.clients[step.client].set_compress(step.number >> 40 & 1 == 0),
    "check_figures": lambda pair, _: pair.check_figures(),
    "no_page": lambda p, step: p.do(step.client, "put_page", step.pool, step.key, b"no page"),
    "check_pages": lambda pair, _: pair.check_pages(),
    "reopen": lambda pair, _: pair.reopen(),
}


@dataclass(frozen=True)
class Failure:
    """Where store and reference differed first."""

    at: int
    why: str


@dataclass
class Tally:
    """What came of the steps."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each method gave each answer."""
    fullest: dict[str, float] = field(default_factory=dict)
    """The largest share of its size that a store's arena and its spill file were seen to occupy."""
    samples: int = 0

    def note(self, occupancy: Occupancy, sizes: Mapping[str, int]) -> None:
        """Takes what an episode's files occupied; no more than their sizes."""
        self.samples += occupancy.samples
        for name, most in occupancy.most.items():
            if most > sizes[name]:
                raise SemanticsError(f"the {name} occupied {most} bytes of {sizes[name]}")
            self.fullest[name] = max(self.fullest.get(name, 0), most / sizes[name])


def play(made: Sequence[Step], which: Shape, tally: Tally) -> Failure | None:
    """Does the steps to a new store."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kztmem-test-") as directory:
        arena = Path(directory) / "arena"
        files, sizes = {"arena": arena}, {"arena": which.memory}
        if which.spill:
            files["spill"], sizes["spill"] = arena.with_suffix(".spill"), which.spill
        pair = Pair(arena, which)
        done = 0
        try:
            with sampled(lambda: files) as occupancy:
                for client in range(len(CLIENTS)):
                    for flags in _KINDS:
                        pair.do(client, "new_pool", flags, UUIDS[0])
                for step in made:
                    _DO[step.name](pair, step)
                    done += 1
                pair.check_pages()
                pair.reopen()
                pair.check_pages()
            tally.note(occupancy, sizes)
        except Exception as error:  # noqa: BLE001  # whatever it is, the steps to it are wanted
            return Failure(done, f"{type(error).__name__}: {error}")
        finally:
            tally.answers += pair.answers
            pair.close()
    return None


def shrink(made: Sequence[Step], which: Shape) -> list[Step]:
    """As few of the steps, which fail, as can be found in a minute or two: delta debugging."""
    deadline = time.monotonic() + _SHRINKING_SECONDS
    left = list(made)
    size = len(left) // 2
    while size and time.monotonic() < deadline:
        for first in range(0, len(left), size):
            shorter = left[:first] + left[first + size :]
            failure = play(shorter, which, Tally())
            if failure is not None:
                left = shorter[: failure.at + 1]
                break
        else:
            size //= 2
    return left


def run(seed: int, operations: int) -> Tally:
    """Does that many operations in episodes.

    Raises `SemanticsError` with the seed, the step and the fewest steps there.
    """
    tally = Tally()
    for episode in range(-(-operations // EPISODE)):
        count = min(EPISODE, operations - episode * EPISODE)
        made, which = steps(seed, episode, count), shape(seed, episode)
        failure = play(made, which, tally)
        if failure is not None:
            few = shrink(made[: failure.at + 1], which)
            again = play(few, which, Tally())
            lines = [
                f"seed {seed}, episode {episode}, step {failure.at}: {failure.why}",
                f"in {which}",
                f"the same in {len(few)} steps: {again.why if again else 'not any more'}",
                *map(str, few),
            ]
            raise SemanticsError("\n".join(lines))
    return tally


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Random operations against the reference.")
    parser.add_argument("--operations", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        tally = run(options.seed, options.operations)
    except SemanticsError as error:
        sys.exit(str(error))
    seconds = time.monotonic() - start
    for (method, answer), count in sorted(tally.answers.items()):
        print(f"{method:12} {answer:6} {count:10}")
    for name, share in tally.fullest.items():
        print(f"{name}: at most {share:.2%} of its size occupied, {tally.samples} samples")
    print(f"{options.operations} operations of seed {options.seed}: no difference, {seconds:.0f} s")


if __name__ == "__main__":
    main()
