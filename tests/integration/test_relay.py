# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest swaps three times its memory through its own agent; either end is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.errors import HostUnable
from kztlab.guest import WORKLOAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Kztlab

pytestmark = pytest.mark.guest

SPEC = """\
lab: relay
guests:
  r: {frontend: relay, memory: 192MiB, swap: 1GiB}
workloads:
  - {name: fill, on: [r], anon: {size: 450MiB}}
"""
PAGES = (450 << 20) // 4096

KILLS = int(os.environ.get("KZTLAB_KILLS", "8"))
"""After each, nbd.ko waits for its time-out before it repeats what was on its way."""
PAGES_BETWEEN = 1500
"""Pages that the store takes between two kills, so that all fall into a session and the load."""

LOAD = f"""\
echo $$ >{WORKLOAD_GROUP}/cgroup.procs
exec kzt-load anon --size=300MiB --passes=2 --json"""

KILL_PUMP = "kill -KILL $(cat /run/kzt-agent.lock)"
KILL_ALL = "pkill -KILL -x kzt-agent"


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[dict[str, Any]]:
    """The lab is up and its load has run; what `up` has to say of it."""
    yield kztlab.json("up", kztlab.spec("relay", SPEC))
    assert kztlab("down", "relay").returncode == 0


def client(kztlab: Kztlab) -> dict[str, Any]:
    """What the store says of the guest; asked again while the store is away."""
    while True:
        with suppress(HostUnable), kztlab.store("relay") as store:
            (found,) = store.status()["clients"]
            return dict(found)
        time.sleep(0.02)


def loaded(kztlab: Kztlab, while_running: Callable[[], None]) -> dict[str, Any]:
    """The load's own report, after something was done while it ran."""
    with kztlab.start("exec", "relay/r", "--", LOAD) as load:
        while_running()
        code, stdout, stderr = load.end()
    assert code == 0, stderr
    report: dict[str, Any] = json.loads(stdout)
    return report


def test_every_page_comes_back_right(lab: dict[str, Any], kztlab: Kztlab) -> None:
    (guest,) = lab["guests"]
    assert guest["frontend"] == "relay"
    (load,) = guest["workloads"]
    assert (load["ok"], load["bad_pages"]) == (True, 0)
    assert min(guest["swapped_out_pages"], guest["swapped_in_pages"]) >= 0.3 * PAGES
    assert client(kztlab)["relay_counters"]["damaged_frames"] == 0


@pytest.mark.usefixtures("lab")
def test_the_agent_needs_little_memory_and_allocates_none_of_it_later(kztlab: Kztlab) -> None:
    agent = client(kztlab)["guest"]["stats"]["agent"]
    assert agent["replies"] > 0
    assert agent["allocations"] == 0
    assert 0 < agent["locked_bytes"] <= 4 << 20
    print("longest stall of a request:", agent["longest_stall_seconds"], "s")  # -rP shows it


@pytest.mark.fault
@pytest.mark.usefixtures("lab")
def test_no_page_is_lost_with_the_agent(kztlab: Kztlab) -> None:
    before = client(kztlab)["relay_counters"]["sessions"]

    def kill() -> None:
        for number in range(KILLS):
            # What the store has taken since the last kill came in a session begun since then.
            target = client(kztlab)["counters"]["puts"] + PAGES_BETWEEN
            while client(kztlab)["counters"]["puts"] < target:
                time.sleep(0.02)
            # Every fourth time its supervisor, and whoever stands by, die with it.
            done = kztlab("exec", "relay/r", KILL_ALL if number % 4 == 3 else KILL_PUMP)
            assert done.returncode == 0, done.stderr

    report = loaded(kztlab, kill)
    assert (report["ok"], report["bad_pages"]) == (True, 0)
    assert client(kztlab)["relay_counters"]["sessions"] >= before + KILLS


@pytest.mark.fault
@pytest.mark.usefixtures("lab")
def test_no_page_is_lost_with_the_store(kztlab: Kztlab) -> None:
    killed = set()

    def serving() -> tuple[int, int]:
        while True:
            with suppress(HostUnable), kztlab.store("relay") as store:
                status = store.status()
                return status["pid"], status["clients"][0]["counters"]["puts"]
            time.sleep(0.02)

    def kill() -> None:
        for _ in range(KILLS):
            # Counters begin anew with each process.
            while (now := serving())[1] < PAGES_BETWEEN or now[0] in killed:
                time.sleep(0.01)
            os.kill(now[0], signal.SIGKILL)
            killed.add(now[0])

    report = loaded(kztlab, kill)
    assert (report["ok"], report["bad_pages"]) == (True, 0)
    assert len(killed) == KILLS
