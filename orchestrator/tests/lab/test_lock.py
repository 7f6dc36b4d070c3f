# SPDX-License-Identifier: GPL-2.0-or-later
"""Two commands at once on one lab."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import HostUnable
from kztlab.lab.lock import locked

if TYPE_CHECKING:
    from kztlab.places import Places

HOLDER = """\
import sys, time
from pathlib import Path
from kztlab.lab.lock import locked
from kztlab.places import Places
state, cache, runtime = map(Path, sys.argv[1:])
with locked(Places(state, cache, runtime, None), "a"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_holds_the_lab(empty: Places) -> None:
    mine = f"process {os.getpid()}"
    with (
        locked(empty, "a"),
        pytest.raises(HostUnable, match=mine),
        locked(empty, "a", patience=0),
    ):
        pass


def test_the_second_waits_for_one_that_is_about_to_end(empty: Places) -> None:
    entered = threading.Event()

    def second() -> None:
        with locked(empty, "a", patience=60):
            entered.set()

    thread = threading.Thread(target=second)
    with locked(empty, "a"):
        thread.start()
        assert not entered.wait(0.3)
    thread.join(60)
    assert entered.is_set()


def test_labs_do_not_keep_each_other_out(empty: Places) -> None:
    with locked(empty, "a"), locked(empty, "b", patience=0):
        pass


def test_the_lock_of_a_killed_process_is_free(empty: Places) -> None:
    folders = map(str, (empty.state, empty.cache, empty.runtime))
    command = [sys.executable, "-c", HOLDER, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        theirs = f"process {holder.pid}"
        with pytest.raises(HostUnable, match=theirs), locked(empty, "a", patience=0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(empty, "a", patience=0):
            pass


def test_a_lab_that_came_to_nothing_leaves_no_folder(empty: Places) -> None:
    with locked(empty, "a"):
        assert empty.lab("a").exists()
    assert not empty.lab("a").exists()


def test_a_lab_whose_folder_was_removed_by_hand_is_let_go_of(empty: Places) -> None:
    with locked(empty, "a"):
        shutil.rmtree(empty.lab("a"))
    with locked(empty, "a", patience=0):
        pass


def test_what_a_lab_has_stays(empty: Places) -> None:
    with locked(empty, "a"):
        (empty.lab("a") / "lab.json").touch()
    assert sorted(path.name for path in empty.lab("a").iterdir()) == ["lab.json", "lock"]
