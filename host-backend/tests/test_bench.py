# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztmemd bench store` as a program. What it measures is not asserted, only that it adds up."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "kztmem.daemon", "bench", "store")
PAGE = 4096
KEYS = {
    *("engine", "codec", "alloc", "threads", "warm", "logical_bytes", "data_bytes", "meta_bytes"),
    *("put_us", "get_us", "put_p99_us", "get_p99_us", "same_filled", "duplicates"),
}


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def rows(*arguments: str | Path) -> list[dict[str, Any]]:
    done = bench("--json", "--repetitions", "1", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def left_behind() -> set[str]:
    """Arenas and zram devices, whoever made them."""
    arenas = {path.name for path in Path("/dev/shm").glob("kztmem-bench-*")}
    return arenas | {path.name for path in Path("/sys/block").glob("zram*")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = left_behind()
    yield
    assert left_behind() == before


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """40 pages: 10 same-filled, 10 random, 10 of text and these once more."""
    randomness = random.Random(1)
    text = b"".join(f"{randomness.random()}\n".encode() for _ in range(10 * PAGE))[: 10 * PAGE]
    (tmp_path / "a.dump").write_bytes(bytes(10 * PAGE) + randomness.randbytes(10 * PAGE))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.dump").write_bytes(2 * text)
    return tmp_path


def test_every_engine_takes_the_same_pages(pages: Path) -> None:
    got = rows(pages / "a.dump", pages / "deeper", "--codec", "lzo,zstd:1", "--threads", "1,2")
    combinations = [(codec, threads) for codec in ("lzo", "zstd:1") for threads in (1, 2)]
    for engine, warm in (("raw", True), ("store", False), ("store", True)):
        ours = [row for row in got if (row["engine"], row["warm"]) == (engine, warm)]
        assert [(row["codec"], row["threads"]) for row in ours] == combinations
    for row in got:
        assert set(row) == KEYS
        assert (row["logical_bytes"], row["same_filled"], row["duplicates"]) == (40 * PAGE, 10, 10)
        assert row["put_us"] > 0
        assert row["get_us"] > 0
        assert 10 * PAGE < row["data_bytes"] < row["logical_bytes"], "random pages do not shrink"
        own = row["engine"] == "store"
        assert (row["alloc"] is None) == (row["engine"] == "raw")
        assert (row["meta_bytes"] or 0) > 0 if own else not row["meta_bytes"]


def test_zram_is_there_or_it_is_said_why(pages: Path) -> None:
    table = bench(pages / "a.dump", "--repetitions", "1")
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0] == "20 pages of 4096 bytes: 80KiB"
    assert lines[1] == "same-filled 50.0 %, duplicates 0.0 %, incompressible by lzo 50.0 %"
    engines = [line.split()[0] for line in lines[4:]]
    assert engines[:3] == ["raw", "store", "store"]
    assert engines[3:] == ["zram", "zram"] or lines[-1].startswith("without zram: ")
    assert "1/3 lzo, threads: 1, repetition 1: raw" in table.stderr, (
        "progress is plain without a terminal"
    )


def test_more_pages_than_the_limit_are_thinned_out(pages: Path) -> None:
    done = bench(pages, "--limit", "40KiB", "--repetitions", "1")
    assert done.stdout.startswith("10 pages of 4096 bytes, evenly spread over 40: 40KiB\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "FILE: '/nowhere' does not exist"),
        (["/dev/zero"], "FILE: '/dev/zero' is no regular file"),
        (["/dev/null/x"], "FILE: '/dev/null/x' does not exist"),
        (["/sys/bus/cpu/uevent"], "FILE: cannot read /sys/bus/cpu/uevent: "),  # not even for root
        (["/proc/version"], "FILE: the files hold no page"),  # its size is 0
        (["/usr/lib/os-release", "--codec", "lzo,gzip"], "--codec: unknown codec 'gzip'"),
        (["/usr/lib/os-release", "--alloc", "slab"], "--alloc: 'slab' is no allocator"),
        (["/usr/lib/os-release", "--threads", "0"], "--threads: '0' is not a number from 1"),
        (["/usr/lib/os-release", "--limit", "1GB"], "--limit: '1GB' has an unknown unit"),
    ],
)
def test_bad_input_is_named(arguments: list[str], says: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kztmemd: error: {says}")


def test_an_interrupt_ends_it_at_once(pages: Path) -> None:
    (pages / "many").write_bytes(random.Random(2).randbytes(PAGE * 5000))
    command = [*COMMAND, str(pages / "many"), "--codec", "zstd:19", "--repetitions", "200"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "raw" in process.stderr.readline()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - began < 30
