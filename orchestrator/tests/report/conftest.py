# SPDX-License-Identifier: GPL-2.0-or-later
"""A run directory with made-up samples: three guests, a load of 60 s, a store away for 4 s.

The samples have the shape of real ones and figures that tests can predict; they measure nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.observe import RunDirectory
from kztlab.report import Ran, RunError, WorkloadResult, summarize
from kztlab.spec import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kztlab.report import Summary

MIB = 1 << 20
ORIGIN = 1000.0
START, END = ORIGIN + 20, ORIGIN + 80
PAGES = 76_800
GUESTS = ("web-1", "web-2", "db")
SPEC = """\
lab: made-up
store: {memory: 512MiB, overcommit: true}
guests:
  web: {count: 2}
  db: {memory: 256MiB, frontend: tmem}
  base: {frontend: disk}
workloads:
  - {name: fill, on: [web, db, base], anon: {size: 300MiB, passes: 2}}
"""


def progress(time: float, lag: float = 0.0) -> float:
    """How far the load has come, from 0 to 1."""
    return min(1.0, max(0.0, (time - START - lag) / (END - START - lag)))


def swapped_out(time: float, guest: int) -> int:
    done = progress(time, 6)
    waves = 0.02 * math.sin(2 * math.pi * (3 + guest) * done)  # never steep enough to go back
    return int(PAGES * (done + waves))


def guest_sample(time: float, guest: int) -> dict[str, Any]:
    memory = (168 + 64 * (guest == 2)) * MIB
    held = min(0.82, 0.25 + progress(time) * 3)
    out = swapped_out(time, guest)
    return {
        "uptime": time - ORIGIN + 8,
        "meminfo": {
            "MemTotal": memory,
            "MemAvailable": int(memory * (1 - held)),
            "SwapTotal": 1024 * MIB,
            "SwapFree": 1024 * MIB - out * 2048,
        },
        "vmstat": {"pgpgin": 4 * out, "pswpout": 500 + out, "pswpin": 90 + int(out * 0.7)},
        "pressure": {"memory": {"some": progress(time) * 20, "full": progress(time) * 9}},
        "cgroup": {"current": int(memory * (held - 0.2)), "swap": out * 2048},
    }


def client(time: float, name: str, guest: int) -> dict[str, Any]:
    puts = swapped_out(time, guest)
    stored = min(puts, 50_000)
    swap = {
        "puts": puts,
        "gets": int(puts * 0.7),
        "get_hits": int(puts * 0.7),
        "flushes": puts // 3,
        "flush_found": puts // 4,
        "failed_puts": puts // 100 if name == "web-2" else 0,
        "over_cap": puts // 200 if name == "web-2" else 0,
        "over_reservation": puts // 400 if name == "web-2" else 0,
        "evicted": 0,
        "crc_errors": 0,
    }
    # The one with tmem has files, too.
    cached = dict.fromkeys(swap, 0)
    if name == "db":
        cached |= {"puts": 2 * puts, "gets": puts, "get_hits": puts // 2, "evicted": puts // 4}
    cleancache = {"puts": 2 * puts, "failed_puts": puts // 8, "invalidates": puts // 2}
    cleancache |= {"succ_gets": 3 * puts // 4, "failed_gets": puts // 4}
    return {
        "name": name,
        "swap_bytes": 1024 * MIB,
        "nbd": f"/run/kztlab/0/clients/{name}/nbd.sock",
        "connections": 1,
        "stored_pages": stored,
        "stored_bytes": stored * 4096 // (3 + guest),
        "same_filled_pages": stored // 10,
        "spilled_bytes": 0,
        "raw_pages": stored // 50,
        "counters": {key: count + cached[key] for key, count in swap.items()},
        "persistent": {"stored_pages": stored, "counters": swap},
        "ephemeral": {"stored_pages": 0, "counters": cached},
        "guest": {"stats": {"cleancache": cleancache}} if name == "db" else None,
        "latency": {
            "put": {"count": puts, "p50_us": 5.1, "p99_us": 22.4, "p999_us": 81.0},
            "get": {"count": puts // 2, "p50_us": 3.2, "p99_us": 14.9, "p999_us": 60.2},
            "flush": {"count": 0, "p50_us": None, "p99_us": None, "p999_us": None},
        },
    }


def status(time: float) -> dict[str, Any]:
    clients = [client(time, name, guest) for guest, name in enumerate(GUESTS)]
    data = sum(each["stored_bytes"] for each in clients)
    return {
        "version": "0.1.0",
        "pid": 1,
        "supervisor_pid": 2,
        "user": "kztlab",
        "uptime_seconds": time - ORIGIN,
        "codec": "lzo",
        "persistent": "zsmalloc",
        "arena": {
            "path": "/dev/shm/kztmem-0-00000000",
            "limit_bytes": 512 * MIB,
            "allocated_bytes": data + 9 * MIB,
            "data_bytes": data,
            "meta_bytes": 4 * MIB,
            "fragmentation_bytes": 5 * MIB,
            "deduplicated_bytes": int(7 * MIB * progress(time)),
            "pages": sum(each["stored_pages"] for each in clients),
        },
        "recovery": {"reason": "new"},
        "warnings": [],
        "clients": clients,
    }


def host_sample(time: float) -> dict[str, Any]:
    return {
        "memory": {"total": 8192 * MIB, "available": int((6000 - 900 * progress(time)) * MIB)},
        "shm": {"size": 4096 * MIB, "used": 100 * MIB},
        "cpu": 0.9 if START < time < END else 0.15,
        "guests": {
            name: {
                "resident": int((120 + 130 * progress(time)) * MIB),
                "cpu_seconds": time - ORIGIN,
            }
            for name in (*GUESTS, "base")
        },
    }


def record(path: Path, samples: dict[float, dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for time, values in samples.items():
            stream.write(json.dumps({"mono": time, "wall": time + 1.7e9, **values}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """The run directory with its samples, as yet without results."""
    spec = tmp_path / "cluster.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    run = RunDirectory.create(tmp_path / "run", load(spec))
    seconds = [ORIGIN + second for second in range(90)]
    samples = run.path / "samples"
    record(samples / "host.jsonl", {time: host_sample(time) for time in seconds})
    store: dict[float, dict[str, Any]] = {time: {"status": status(time)} for time in seconds}
    for away in range(50, 54):
        del store[ORIGIN + away]
    store[ORIGIN + 50] = {"gap": "StoreUnreachable: the store does not answer"}
    record(samples / "store.jsonl", dict(sorted(store.items())))
    for number, name in enumerate((*GUESTS, "base")):
        since = [time for time in seconds if time >= ORIGIN + 8 + number]
        record(
            samples / f"guest-{name}.jsonl", {time: guest_sample(time, number) for time in since}
        )
    return run


@pytest.fixture
def summarized(run: RunDirectory) -> Callable[..., Summary]:
    """Writes the run's summary; `failed` makes the workload on ``db`` fail."""

    def summarized(*, failed: bool = False, errors: tuple[RunError, ...] = ()) -> Summary:
        ran = []
        for name in (*GUESTS, "base"):
            bad = failed and name == "db"
            workload = WorkloadResult(
                name="fill",
                ok=not bad,
                seconds=59.5,
                bad_pages=3 if bad else 0,
                pages=PAGES,
                longest_access_seconds=0.25,
                started=START,
                ended=END,
                failure="3 of 76800 pages were wrong" if bad else None,
                output="offset 17: \x1b[31m<expected> 5 & found 6\x1b[0m\x00" if bad else "",
            )
            store = None if name == "base" else name
            ran.append(Ran(guest=name, client=store, workloads=[workload]))
        return summarize(
            run,
            accel="tcg",
            started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            origin=ORIGIN,
            ended=ORIGIN + 90,
            ran=ran,
            versions={"kztlab": "0.1.0", "QEMU": "7.2.0"},
            errors=errors,
        )

    return summarized


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[str], str]:
    """Loads a page in a headless browser, runs its scripts and gives the document they leave."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs the program chromium")

    def browser(url: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/b"]
        command = [program, *options, "--virtual-time-budget=20000", "--dump-dom", url]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return browser
