# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that are interrupted, killed, or meet another one on the same lab."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault]

TEXT = """\
lab: brief
guests: {g: {memory: 128MiB, swap: 256MiB}}
workloads: [{name: nap, on: [g], command: sleep 987}]
"""


@pytest.fixture
def brief(kztlab: Kztlab) -> Iterator[Path]:
    """A lab's spec; whatever the test leaves of the lab is taken down, twice."""
    yield kztlab.spec("brief", TEXT)
    assert kztlab("down", "brief").returncode == 0
    assert "brief" not in kztlab.labs()
    again = kztlab("down", "brief")
    assert (again.returncode, again.stdout) == (0, "brief: was not up\n")
    assert not kztlab.places.sockets("brief").exists()


@pytest.mark.parametrize(
    "step",
    [
        "store: starting",
        "g: starting",
        "g: kernel console",
        "g: SSH banner",
        "g: SSH login",
        "g: swap on",
        "g: cgroup",
    ],
)
def test_after_an_interrupt_the_lab_is_still_listed(kztlab: Kztlab, brief: Path, step: str) -> None:
    with kztlab.start("up", brief) as up:
        up.until(step)
        code, stdout, stderr = up.end(signal.SIGINT)
    assert code == 130
    assert stdout == ""
    assert "interrupted; the lab brief is still up" in stderr
    assert "kztlab down brief" in stderr
    assert "Traceback" not in stderr
    assert "brief" in kztlab.labs()


def test_an_interrupted_workload_is_ended_and_up_goes_on_from_there(
    kztlab: Kztlab, brief: Path
) -> None:
    with kztlab.start("up", brief) as up:
        up.until("g: nap: running")
        assert up.end(signal.SIGINT)[0] == 130
    assert kztlab("exec", "g", "pgrep -f 'sleep 98[7]'").stdout == ""
    done = kztlab("up", kztlab.spec("brief", TEXT.replace("sleep 987", "sleep 0")))
    assert done.returncode == 0, done.stderr
    assert "g: starting" not in done.stderr


def test_an_interrupted_run_takes_its_lab_down(kztlab: Kztlab, brief: Path) -> None:
    with kztlab.start("run", brief) as run:
        run.until("g: swap on")
        code, _, stderr = run.end(signal.SIGTERM)
    assert code == 130
    assert "interrupted; the lab brief is down again" in stderr
    assert "brief" not in kztlab.labs()


def test_a_killed_up_leaves_a_lab_that_can_go_on_or_down(kztlab: Kztlab, brief: Path) -> None:
    with kztlab.start("up", brief) as up:
        up.until("g: SSH banner")
        up.end(signal.SIGKILL)
    assert kztlab.json("status", "brief")["guests"][0]["state"] == "booting"
    done = kztlab("up", kztlab.spec("brief", TEXT.replace("sleep 987", "sleep 0")))
    assert done.returncode == 0, done.stderr


def test_a_second_command_is_told_of_the_first(kztlab: Kztlab, brief: Path) -> None:
    with kztlab.start("up", brief) as up:
        up.until("g: starting")
        second = kztlab("down", "brief")
        assert second.returncode == 4
        assert f"another kztlab command is at work on the lab brief: process {up.process.pid}" in (
            second.stderr
        )
        assert up.process.poll() is None
        up.end(signal.SIGINT)


def test_a_lab_without_its_record_is_still_found_and_taken_down(
    kztlab: Kztlab, brief: Path
) -> None:
    with kztlab.start("up", brief) as up:
        up.until("g: kernel console")
        up.end(signal.SIGKILL)
    (kztlab.places.lab("brief") / "lab.json").write_text("{ not json")
    states = {lab["lab"]: lab["state"] for lab in kztlab.json("ls")["labs"]}
    assert states["brief"] == "broken"
    assert "kztlab down brief" in kztlab("status", "brief").stderr
