# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest swaps three times its memory through its own agent; everything around it fails meanwhile.

The suite does it a few times. `KZTLAB_KILLS=20` kills so many times, `KZTLAB_RESTARTS=100` restarts
the agent so often.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.swapping import KILL_ALL, KILL_PUMP, PAGES_BETWEEN, Swapper, number
from tests.support.unplugged import wait_for_the_next_port

from kztlab.hypervisor import Hypervisor
from kztlab.hypervisor.xml import RELAY_PORT
from kztlab.lab import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

KILLS = number("KZTLAB_KILLS", 4)
RESTARTS = number("KZTLAB_RESTARTS", 4)
REST = 0.9
"""Seconds of the guest between two connections of the kernel's; the agent waits one."""
LONG = 8.0
"""Seconds: longer than nbd's time-out."""

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300 + 60 * (KILLS + RESTARTS))]

SPEC = """\
lab: relay
guests:
  r: {frontend: relay, memory: 192MiB, swap: 1GiB}
workloads:
  - {name: fill, on: [r], anon: {size: 450MiB}}
"""
PAGES = (450 << 20) // 4096


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[dict[str, Any]]:
    """The lab is up and its load has run; what `up` has to say of it."""
    yield kztlab.json("up", kztlab.spec("relay", SPEC))
    assert kztlab("down", "relay").returncode == 0


@pytest.fixture
def guest(lab: dict[str, Any], kztlab: Kztlab) -> Swapper:
    return Swapper(kztlab, lab["lab"], "r")


def sessions(guest: Swapper) -> int:
    found: int = guest.client()["relay_counters"]["sessions"]
    return found


def test_every_page_comes_back_right(lab: dict[str, Any], guest: Swapper) -> None:
    (found,) = lab["guests"]
    assert found["frontend"] == "relay"
    (load,) = found["workloads"]
    assert (load["ok"], load["bad_pages"]) == (True, 0)
    assert load["longest_access_seconds"] > 0
    assert min(found["swapped_out_pages"], found["swapped_in_pages"]) >= 0.3 * PAGES
    assert guest.client()["relay_counters"]["damaged_frames"] == 0


def test_the_agent_needs_little_memory_and_allocates_none_of_it_later(guest: Swapper) -> None:
    agent = guest.client()["guest"]["stats"]["agent"]
    assert agent["replies"] > 0
    assert agent["allocations"] == 0
    assert 0 < agent["locked_bytes"] <= 4 << 20
    print("longest stall of a request:", agent["longest_stall_seconds"], "s")  # -rP shows it


def test_a_request_keeps_its_tag(guest: Swapper) -> None:
    """With a scheduler it may be sent in part under one tag and answered under another."""
    assert guest.run("cat /sys/block/nbd0/queue/scheduler").startswith("[none]")


@pytest.mark.fault
def test_no_page_is_lost_with_the_agent(guest: Swapper) -> None:
    before = sessions(guest)
    guest.kill_agents(KILLS)
    assert sessions(guest) >= before + KILLS


@pytest.mark.fault
def test_no_page_is_lost_with_the_store(guest: Swapper) -> None:
    killed: set[int] = set()
    with guest.loading("300MiB", again=True) as load:
        for _ in range(KILLS):
            # Counters begin anew with each process.
            pid = guest.wait(load, PAGES_BETWEEN, but=killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        load.report()
    assert len(killed) == KILLS


@pytest.mark.fault
def test_no_page_is_lost_with_both(guest: Swapper) -> None:
    killed: set[int] = set()
    with guest.loading("300MiB", again=True) as load:
        for kill in range(KILLS):
            pid = guest.wait(load, PAGES_BETWEEN, but=killed)
            # Either is away when the other one comes back.
            if kill % 2:
                os.kill(pid, signal.SIGKILL)
            guest.run(KILL_ALL if kill % 4 == 3 else KILL_PUMP, load)
            if kill % 2 == 0:
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        load.report()
    assert len(killed) == KILLS


@pytest.mark.fault
def test_an_agent_that_starts_again_and_again_loses_nothing(guest: Swapper) -> None:
    """It is killed in a session that takes pages, and then in one that has only begun."""
    before = sessions(guest)
    with ExitStack() as stack:
        # Several of them send requests while nbd's receiver is busy with replies.
        loads = [stack.enter_context(guest.loading("80MiB", again=True)) for _ in range(3)]
        for restart in range(RESTARTS):
            now = sessions(guest)
            if restart % 2 == 0:
                guest.wait_more(loads[0], PAGES_BETWEEN)
            guest.run(KILL_PUMP, loads[0])
            for _ in loads[0].statuses():
                if sessions(guest) > now:
                    break
        assert all(load.running for load in loads)
        # What was not verified in all that time is now.
        guest.wait_more(loads[0], PAGES_BETWEEN)
        for load in loads:
            load.report()
    assert sessions(guest) >= before + RESTARTS


@pytest.mark.fault
def test_the_kernel_has_time_to_end_a_connection(guest: Swapper) -> None:
    """Without it two of nbd's receivers may read from one socket: five of 648 kills ended so, two
    with wrong pages. The kernel's log has all connections of the tests before, too."""
    guest.kill_agents(1)
    log = guest.run("dmesg")
    end, pauses = None, []
    for line in log.splitlines():
        now = float(line[1:].partition("]")[0])
        if "kzt-agent: the pump ended" in line or "kzt-agent: session lost" in line:
            end = now
        elif end is not None and "block nbd0: reconnected socket" in line:
            pauses.append(now - end)
            end = now
    assert pauses
    assert min(pauses) >= REST, log
    assert "Wrong magic" not in log


@pytest.mark.fault
def test_a_paused_guest_goes_on(guest: Swapper, kztlab: Kztlab) -> None:
    with guest.loading("256MiB") as load, Hypervisor(kztlab.places) as hypervisor:
        for _ in range(2):
            guest.wait_more(load, PAGES_BETWEEN)
            hypervisor.qmp("relay", "r", "stop")
            time.sleep(LONG)
            hypervisor.qmp("relay", "r", "cont")
        load.report()


@pytest.mark.fault
def test_a_stopped_qemu_goes_on(guest: Swapper, kztlab: Kztlab) -> None:
    """Unlike in a paused guest, the clock goes on: all that it waits for is late at once."""
    qemu = processes.guests(kztlab.places, "relay")["r"]
    with guest.loading("256MiB") as load:
        for _ in range(2):
            guest.wait_more(load, PAGES_BETWEEN)
            os.kill(qemu, signal.SIGSTOP)
            time.sleep(LONG)
            os.kill(qemu, signal.SIGCONT)
        load.report()


@pytest.mark.fault
def test_a_slow_store_is_waited_for(guest: Swapper) -> None:
    """The kernel gives its connection up, and repeats on the next one what was in flight."""
    with guest.loading("256MiB") as load:
        for _ in range(2):
            pid = guest.wait_more(load, PAGES_BETWEEN)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(LONG)
            os.kill(pid, signal.SIGCONT)
        load.report()


@pytest.mark.fault
def test_a_load_waits_for_a_port_that_was_unplugged(guest: Swapper) -> None:
    wait_for_the_next_port(guest, RELAY_PORT, "300MiB")
