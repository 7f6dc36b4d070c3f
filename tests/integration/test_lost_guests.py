# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that panic or are killed: noticed, told with their console, and the others go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab.lab import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault]

GUESTS = """\
lab: fragile
guests:
  victim: {memory: 128MiB, frontend: none}
  other: {memory: 128MiB, frontend: none}
workloads:
"""


@pytest.fixture(scope="module")
def fragile(kztlab: Kztlab) -> Iterator[Kztlab]:
    yield kztlab
    assert kztlab("down", "fragile").returncode == 0


def test_a_panic_is_told_with_its_console_and_the_other_guest_goes_on(fragile: Kztlab) -> None:
    work = """\
  - {name: crash, on: [victim], command: "sleep 1; echo c >/proc/sysrq-trigger; sleep 600"}
  - {name: fine, on: [other], command: "sleep 3; echo fine"}
"""
    done = fragile("up", fragile.spec("panic", GUESTS + work))
    assert done.returncode == 3
    assert "guest victim panicked: sysrq triggered crash" in done.stderr
    assert "Kernel panic - not syncing" in done.stderr
    assert "fine ok" in done.stdout
    console = next(
        line.removeprefix("  in ") for line in done.stderr.splitlines() if line.startswith("  in ")
    )
    assert "Kernel panic" in Path(console).read_text()
    told = fragile.json("status", "fragile", code=3)
    states = {guest["name"]: guest["state"] for guest in told["guests"]}
    assert states == {"victim": "panicked", "other": "running"}


def test_up_brings_the_lost_guest_back_and_a_killed_one_is_noticed(fragile: Kztlab) -> None:
    work = '  - {name: nap, on: [victim], command: "sleep 600"}\n'
    with fragile.start("up", fragile.spec("killed", GUESTS + work), "--json") as up:
        up.until("victim: nap: running")
        os.kill(processes.guests(fragile.places, "fragile")["victim"], signal.SIGKILL)
        code, stdout, stderr = up.end()
    assert code == 3
    assert "guest victim was killed from outside" in stderr
    guests = {guest["name"]: guest for guest in json.loads(stdout)["guests"]}
    assert not guests["victim"]["workloads"][0]["ok"]
    assert fragile.json("status", "fragile", code=3)["guests"][0]["state"] == "gone"


def test_a_guest_that_dies_while_it_boots_is_told(fragile: Kztlab) -> None:
    with fragile.start("up", fragile.spec("boot", GUESTS.replace("workloads:\n", ""))) as up:
        up.until("victim: kernel console")
        os.kill(processes.guests(fragile.places, "fragile")["victim"], signal.SIGKILL)
        code, _, stderr = up.end()
    assert code == 3
    assert "guest victim was killed from outside" in stderr
    assert "at step" in stderr


def test_a_workload_without_room_is_killed_and_its_guest_goes_on(fragile: Kztlab) -> None:
    work = '  - {name: hog, on: [other], command: "head -c 300M /dev/zero | tail"}\n'
    done = fragile("up", fragile.spec("hog", GUESTS + work))
    assert done.returncode == 1
    assert "other: hog: the command was killed by signal 9, perhaps for lack of memory" in (
        done.stderr
    )
    assert all(guest["state"] == "running" for guest in fragile.json("status", "fragile")["guests"])


def test_a_guest_that_is_not_ready_in_time_is_told_with_the_step(kztlab: Kztlab) -> None:
    text = "lab: slow\nguests: {late: {memory: 128MiB, frontend: none, boot_timeout: 1s}}\n"
    done = kztlab("run", kztlab.spec("slow", text))
    assert done.returncode == 3
    assert "guest late was not ready after 1 s: it stopped at step '" in done.stderr
    assert "slow" not in kztlab.labs()
