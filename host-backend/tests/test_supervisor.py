# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor with real processes: each test supervises a small program of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Protocol

import pytest

from kztmem.supervisor import delay_before_restart

_PROGRAM = """\
import os, signal, sys, time
from kztmem import supervisor

def serve():
    print(os.getpid(), flush=True)
{body}

sys.exit(supervisor.supervise(serve))
"""
# SIGTERM is blocked in a new child, so that none is lost before somebody waits for it.
_SERVE = "signal.sigwait({signal.SIGTERM})\nreturn 0"


class Supervised(Protocol):
    def __call__(self, body: str, setup: str = "") -> "subprocess.Popen[str]": ...


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    """Starts a supervisor whose child says its pid, then does what `body` says."""
    with contextlib.ExitStack() as stack:

        def start(body: str, setup: str = "") -> "subprocess.Popen[str]":
            program = _PROGRAM.format(body=textwrap.indent(body, "    "))
            process = subprocess.Popen(
                [sys.executable, "-c", setup + "\n" + program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(_kill_all, process.pid)
            return process

        yield start


def _kill_all(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def _child(supervisor: "subprocess.Popen[str]") -> int:
    assert supervisor.stdout is not None
    return int(supervisor.stdout.readline())


def test_a_killed_child_is_replaced_until_sigterm(supervised: Supervised) -> None:
    supervisor = supervised(_SERVE)
    first = _child(supervisor)
    os.kill(first, signal.SIGKILL)
    second = _child(supervisor)
    assert second != first
    supervisor.terminate()
    assert supervisor.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_a_child_that_ends_cleanly_ends_the_supervisor(supervised: Supervised) -> None:
    supervisor = supervised(_SERVE)
    os.kill(_child(supervisor), signal.SIGTERM)
    assert supervisor.wait() == 0


@pytest.mark.parametrize("code", [2, 4])
def test_a_refusal_to_start_is_final(supervised: Supervised, code: int) -> None:
    supervisor = supervised(f"return {code}")
    output, _ = supervisor.communicate()
    assert len(output.split()) == 1
    assert supervisor.returncode == code


def test_a_child_that_keeps_dying_is_given_up(supervised: Supervised) -> None:
    setup = "from kztmem import supervisor\nsupervisor.GIVE_UP = 5"
    supervisor = supervised("raise ValueError('broken')", setup)
    output, log = supervisor.communicate()
    assert len(output.split()) == 5
    assert supervisor.returncode == 4
    assert "ValueError: broken" in log
    assert "giving up: it died 5 times" in log


def test_a_child_that_does_not_stop_is_killed(supervised: Supervised) -> None:
    setup = "from kztmem import supervisor\nsupervisor.KILL_AFTER = 0.1"
    supervisor = supervised("time.sleep(3600)", setup)
    child = _child(supervisor)
    supervisor.terminate()
    assert supervisor.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_threads_forbid_forking(supervised: Supervised) -> None:
    setup = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    supervisor = supervised(_SERVE, setup)
    _, errors = supervisor.communicate()
    assert "2 threads" in errors


def test_restarts_are_immediate_then_slower_but_never_rare() -> None:
    delays = [delay_before_restart(deaths) for deaths in range(30)]
    assert delays[:11] == [0.0] * 11
    assert delays == sorted(delays)
    assert max(delays) == 0.5
