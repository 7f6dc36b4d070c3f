# SPDX-License-Identifier: GPL-2.0-or-later
"""The same verifying load in guests that swap to the store, to a disk or to their own memory.

All guests are of one lab and boot once, from one image unless images are to be compared. One at a
time works; the others' processors are stopped meanwhile, so that they cost nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench import lab
from bench.lab import Lab, Processor
from kztlab.guest import WORKLOAD_GROUP
from kztlab.image.recipe import recipe
from kztlab.spec import parse_size

FRONTENDS = ("vhost-user-blk", "nbd", "relay", "tmem", "disk", "zswap", "zram")
BASELINES = ("disk", "zram")

IMAGE = "debian-trixie-tmem"
"""Its kernel serves all frontends."""

LAB = "bench-guests"
HEAD = f"""\
lab: {LAB}
store: {{memory: 1GiB, overcommit: true}}
guests:
"""
GUEST = """\
  {name}: {{memory: 192MiB, vcpus: {vcpus}, frontend: {frontend}, image: {image}, swap: 1GiB}}
"""

ZRAM_MOST = 256 << 20
"""Bytes of a load. zram keeps pages in the guest's own 192 MiB, where a load of 450 MiB did not end
in five minutes."""

# The login costs an emulated guest more than a little: it comes before the clocks are read.
SCRIPT = f"""\
echo $$ >{WORKLOAD_GROUP}/cgroup.procs && echo ready && read -r go &&
exec kzt-load anon --size=%s --content=text --passes=2 --json"""


@dataclass(frozen=True)
class Load:
    """What a guest has to do, with how many processors and which system."""

    size: str
    vcpus: int
    image: str


@dataclass(frozen=True)
class Figure:
    """What a load took over one frontend, in the order of the rounds."""

    frontend: str
    load: Load
    guest: str
    seconds: list[float]
    swapped_pages: list[int]
    """Pages that went out and came in, by the guest's own count."""
    processor: list[Processor]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)


def compare(
    frontends: Sequence[str],
    loads: Sequence[Load],
    rounds: int,
    progress: Callable[[str], None],
) -> list[Figure]:
    """Run every load over each frontend in turn that is able to take it, as often as asked."""
    images = list(dict.fromkeys(load.image for load in loads))
    figures = [
        Figure(frontend, load, _guest(frontend, load, images), [], [], [])
        for load in loads
        for frontend in frontends
        if _is_able(frontend, load)
    ]
    names = {figure.guest: figure for figure in figures}
    spec = HEAD + "".join(
        GUEST.format(
            name=name,
            vcpus=figure.load.vcpus,
            frontend=figure.frontend,
            image=figure.load.image,
        )
        for name, figure in names.items()
    )
    with lab.running(LAB, spec) as guests:
        for name in names:
            guests.qmp(name, "stop")
        for number in range(rounds):
            # Who goes first is another one each round.
            first = number % len(figures)
            for figure in figures[first:] + figures[:first]:
                progress(f"{number + 1}/{rounds}: {figure.load.size} in {figure.guest}")
                _run(guests, figure)
    return figures


def _is_able(frontend: str, load: Load) -> bool:
    linux = recipe(load.image).linux
    match frontend:
        case "tmem":
            return linux is not None and linux.patched
        case "zswap":
            return linux is not None
        case "zram":
            return parse_size(load.size) <= ZRAM_MOST
    return True


def _guest(frontend: str, load: Load, images: Sequence[str]) -> str:
    number = images.index(load.image)
    return f"{frontend}-{load.vcpus}" + (f"-{number + 1}" if number else "")


def _run(guests: Lab, figure: Figure) -> None:
    name = figure.guest
    with guests.going(name), guests.start(name, SCRIPT % figure.load.size) as process:
        if (
            process.stdin is None
            or process.stdout is None
            or process.stdout.readline() != "ready\n"
        ):
            raise RuntimeError(f"{name} is not ready")
        before = guests.processor(name)
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        after = guests.processor(name)
    report = json.loads(answer or "{}")
    if not report.get("ok"):
        raise RuntimeError(f"the load in {name} failed: {answer or process.returncode}")
    figure.seconds.append(report["seconds"])
    figure.swapped_pages.append(report["pswpout"] + report["pswpin"])
    figure.processor.append(after.since(before))
