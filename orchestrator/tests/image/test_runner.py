# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of a build: their failures, and that none outlives the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import HostUnable
from kztlab.image.runner import Runner
from kztlab.locks import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.places import Places


@pytest.fixture
def runner(places: Places, room: Path) -> Iterator[Runner]:
    folder = room / "workshops/one"
    folder.mkdir()
    places.own(folder)
    with lock(folder) as descriptor:
        yield Runner(places, folder, descriptor, lambda _step, _seconds: None)


def test_a_failure_is_told_with_the_end_of_its_output(runner: Runner) -> None:
    with pytest.raises(HostUnable, match=r"(?s)packing failed \(exit status 3\):.*\nthe reason$"):
        runner.step("packing", ["sh", "-c", "seq 100; echo the reason >&2; exit 3"])


def test_a_full_disk_is_told_as_such(runner: Runner) -> None:
    with pytest.raises(HostUnable, match=r"packing: the disk is full \(make room"):
        runner.step("packing", ["dd", "if=/dev/zero", "of=/dev/full", "count=1"])


def test_programs_run_as_the_builds_user_and_inside_as_root_of_its_namespace(
    runner: Runner,
) -> None:
    runner.choose_mode()
    runner.step("outside", ["sh", "-c", 'id -u >"$HOME/outside"'])
    runner.step("inside", ["sh", "-c", "id -u; cat /proc/self/uid_map"], inside=True)
    account = runner.places.account()
    assert int((runner.folder / "outside").read_text()) == account.pw_uid
    assert (runner.folder / "log").read_text().startswith("0\n")


def test_an_interrupted_step_takes_its_descendants_along(runner: Runner) -> None:
    pipe, end = os.pipe()
    os.set_inheritable(end, True)
    runner.keep = end  # open in every descendant, so that the pipe tells when all are gone

    def interrupt(_step: str, seconds: float) -> None:
        if seconds > 0:
            raise KeyboardInterrupt

    runner.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        runner.step("sleeping", ["sh", "-c", "sleep 1000 & sleep 1000"])
    os.close(end)
    assert os.read(pipe, 1) == b""
    os.close(pipe)


KILLED = """
import os, sys
from pathlib import Path
from kztlab.image.runner import Runner
from kztlab.places import Places
folder, user = Path(sys.argv[1]), sys.argv[2] or None
places = Places(folder, folder, folder, user)
run = Runner(places, folder, 1, lambda step, seconds: None)
run.step("sleeping", ["sh", "-c", "echo started; sleep 1000 & sleep 1000"])
"""


def test_a_killed_build_takes_its_programs_along(runner: Runner) -> None:
    """Its own output is the descriptor that all of them inherit: it ends with the last of them."""
    build = subprocess.Popen(
        [sys.executable, "-c", KILLED, runner.folder, runner.places.user or ""],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    log = runner.folder / "log"
    while build.poll() is None and not (log.exists() and log.read_text() == "started\n"):
        time.sleep(0.01)
    build.send_signal(signal.SIGKILL)
    assert build.stdout is not None
    with build.stdout:
        assert build.stdout.read() == b""
    assert build.wait() == -signal.SIGKILL
