# SPDX-License-Identifier: GPL-2.0-or-later
"""Several things at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial

import pytest

from kztlab.errors import GuestLost
from kztlab.parallel import in_parallel


def test_all_run_at_once_and_each_has_its_result() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def work(number: int) -> int:
        meeting.wait()
        return number * 2

    works = {number: partial(work, number) for number in range(3)}
    assert in_parallel(works, threading.Event()) == {0: 0, 1: 2, 2: 4}


def test_a_failure_is_a_result_beside_the_others() -> None:
    failure = GuestLost("gone")

    def fail() -> int:
        raise failure

    results = in_parallel({"bad": fail, "good": lambda: 1}, threading.Event())
    assert results == {"bad": failure, "good": 1}


def test_a_bug_is_raised() -> None:
    def wrong() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parallel({"bug": wrong}, threading.Event())


def test_an_interrupt_tells_the_works_to_stop_and_waits_for_them() -> None:
    stop = threading.Event()
    stopped = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
        time.sleep(0.3)
        stopped.set()

    with pytest.raises(KeyboardInterrupt):
        in_parallel({"work": work}, stop)
    assert stopped.is_set()


def test_nothing_to_do_is_done() -> None:
    assert in_parallel({}, threading.Event()) == {}
