# SPDX-License-Identifier: GPL-2.0-or-later
"""Files twice a guest's memory, read again and again, with and without tmem for clean pages.

The files are on a disk of their own, which QEMU reads past the host's page cache. Nobody but the
guest that is measured runs meanwhile. As guests differ from each other by some percent, one serves
for all ways of tmem, and has its module loaded anew for each.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import lab
from bench.lab import Lab, Processor
from kztlab.guest import WORKLOAD_GROUP
from kztlab.places import Places

MIB = 1 << 20
MEMORY_MIB = 128
FILE_BYTES = 2 * MEMORY_MIB * MIB
FILES = {"scan": 1, "set": 3}
"""How often each is read, in this order."""
PASSES = ("scan", "set, 1st time", "set, 2nd time", "set, 3rd time")

RANDOM_BYTES = 1229
"""Of each page: the others compress to next to nothing, so 70 % do, as fio's."""
SEED = 6

LAB = "bench-cleancache"
HEAD = f"""\
lab: {LAB}
store: {{memory: 1GiB, overcommit: true}}
guests:
"""
GUEST = f"""\
  {{name}}: {{{{memory: {MEMORY_MIB}MiB, image: {{image}}, swap: 256MiB, {{more}}}}}}
"""
TMEM = "tmem"
SERIAL = "bench-files"

WAYS: dict[str, dict[str, int] | None] = {
    "not loaded": None,
    "cleancache off": {"cleancache": 0},
    "puts off": {"admit": 0},
    "puts": {"admit": 1},
    "puts that wait": {"admit": 1, "put_wait": 1},
    "puts, second eviction": {"admit": 2},
}
"""The module kztmem of one guest, by the parameters that it is loaded with."""
BASELINES = ("disk", "not loaded", "cleancache off")

# Nothing may be swapped: the module can't be unloaded as long as the store has a page of that. Who
# starts the agent, and would load the module again, is stopped before that ends.
UNLOAD = """\
wait_for() {
    tries=100
    until "$@"; do
        [ $((tries -= 1)) -gt 0 ] || exit
        sleep 0.1
    done
}
is_unloaded() { [ ! -e /sys/module/kztmem ] || rmmod kztmem; }
is_answered() { [ "$(cat /sys/class/misc/kztmem/stats/frames_received)" -gt 0 ]; }
swapoff -a
pkill -STOP -x agent
pkill -KILL -x kzt-agent
wait_for is_unloaded"""
LOAD = "modprobe kztmem {} && pkill -CONT -x agent && wait_for is_answered"

# A new mount: neither the page cache nor the index of tmem knows the files.
RUN = f"""\
mkdir -p /mnt/files && {{{{ umount /mnt/files 2>/dev/null || :; }}}} &&
mount -o ro,noatime /dev/{{disk}} /mnt/files && echo $$ >{WORKLOAD_GROUP}/cgroup.procs || exit
counters() {{{{
    while read -r name value; do
        [ "$name" != pgpgin ] || line=$value
    done </proc/vmstat
    for name in succ_gets puts; do
        value=0
        [ ! -e /sys/kernel/mm/cleancache/$name ] || read -r value </sys/kernel/mm/cleancache/$name
        line="$line $value"
    done
    echo "$line"
}}}}
counters
while read -r file; do
    cat /mnt/files/$file >/dev/null
    counters
done"""


@dataclass(frozen=True)
class Pass:
    """One reading of one file."""

    seconds: float
    disk_mib: float
    hits: int
    puts: int
    processor: Processor


@dataclass(frozen=True)
class Figure:
    """What readings of the files took in one way, in the order of the rounds."""

    name: str
    guest: str
    parameters: dict[str, int] | None
    """Of kztmem; None: it is not loaded."""
    rounds: list[tuple[Pass, ...]] = field(default_factory=list)

    def passes(self, number: int) -> list[Pass]:
        """One of the passes in all rounds."""
        return [each[number] for each in self.rounds]


def compare(images: Sequence[str], rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    """Read all files in all ways in turn, on the first image; without tmem on each of them."""
    plain = {f"disk-{number}": image for number, image in enumerate(images, 1)}
    spec = HEAD
    for name, image in plain.items():
        spec += GUEST.format(name=name, image=image, more="frontend: disk")
    spec += GUEST.format(name=TMEM, image=images[0], more="frontend: tmem")
    figures = [
        Figure("disk" if image == images[0] else f"disk, {image}", name, None)
        for name, image in plain.items()
    ]
    figures += [Figure(name, TMEM, parameters) for name, parameters in WAYS.items()]
    with lab.running(LAB, spec) as guests, _disk(guests.places) as path:
        disks = {}
        for name in (*plain, TMEM):
            guests.plug(name, path, SERIAL, read_only=True, direct=True)
            disks[name] = guests.disks(name, {SERIAL})[SERIAL]
            guests.qmp(name, "stop")
        for number in range(rounds):
            # Who goes first is another one each round.
            first = number % len(figures)
            for figure in figures[first:] + figures[:first]:
                progress(f"{number + 1}/{rounds}: {figure.name}")
                figure.rounds.append(_run(guests, figure, disks[figure.guest]))
    return figures


def _run(guests: Lab, figure: Figure, disk: str) -> tuple[Pass, ...]:
    name = figure.guest
    passes = []
    with guests.going(name):
        guests.run(name, _module(figure.parameters))
        with guests.start(name, RUN.format(disk=disk)) as process:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError(f"{name} is not reached")
            counted = process.stdout.readline()
            for file, times in FILES.items():
                for _ in range(times):
                    before, used, began = counted, guests.processor(name), time.monotonic()
                    process.stdin.write(f"{file}\n")
                    process.stdin.flush()
                    counted = process.stdout.readline()
                    seconds, used = time.monotonic() - began, guests.processor(name).since(used)
                    passes.append(_passed(seconds, used, before, counted))
            process.stdin.close()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return tuple(passes)


def _module(parameters: dict[str, int] | None) -> str:
    """The script that loads kztmem with these parameters, or none, and has it begin a session."""
    if parameters is None:
        return UNLOAD
    words = (f"{name}={value}" for name, value in parameters.items())
    return f"{UNLOAD}\n{LOAD.format(' '.join(words))}"


def _passed(seconds: float, used: Processor, before: str, after: str) -> Pass:
    now, then = ([int(word) for word in line.split()] for line in (after, before))
    disk_kib, hits, puts = (one - other for one, other in zip(now, then, strict=True))
    return Pass(seconds, disk_kib / 1024, hits, puts, used)


@contextmanager
def _disk(places: Places) -> Iterator[Path]:
    """A disk with the files, where the host's own disk is."""
    with tempfile.TemporaryDirectory(prefix="kztbench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        tree, disk = folder / "tree", folder / "disk"
        tree.mkdir()
        chance = random.Random(SEED)  # noqa: S311  -- no secret
        for file in FILES:
            with (tree / file).open("wb") as out:
                for _ in range(FILE_BYTES // 4096):
                    out.write(chance.randbytes(RANDOM_BYTES).ljust(4096, b"."))
        lab.disk(places, tree, disk, len(FILES) * FILE_BYTES + 64 * MIB)
        yield disk
