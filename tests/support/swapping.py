# SPDX-License-Identifier: GPL-2.0-or-later
"""A verifying load in a guest that swaps, and what the store and the guest's agent say of it."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kztlab.errors import HostUnable
from kztlab.guest import WORKLOAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab, Started

KILL_PUMP = "kill -KILL $(cat /run/kzt-agent.lock)"
KILL_ALL = "pkill -KILL -x kzt-agent"


def number(variable: str, default: int) -> int:
    """How often a test does its work: few times in the suite, more where this is set."""
    return int(os.environ.get(variable, default))


@dataclass(frozen=True)
class Swapper:
    """One guest of a lab."""

    kztlab: Kztlab
    lab: str
    guest: str

    @contextmanager
    def loading(
        self, size: str, passes: int = 1, content: str = "mixed", seconds: int | None = None
    ) -> Iterator[Load]:
        """A load that runs meanwhile, where workloads do; killed after so many seconds."""
        load = f"kzt-load anon --size={size} --passes={passes} --content={content} --json"
        if seconds:  # a shell stays, to tell a kill by an exit code
            load = f"timeout --foreground -s KILL {seconds} {load} || exit $?"
        else:
            load = f"exec {load}"
        command = f"echo $$ >{WORKLOAD_GROUP}/cgroup.procs && {load}"
        with self.kztlab.start("exec", f"{self.lab}/{self.guest}", "--", command) as started:
            yield Load(started)

    def load(self, size: str, passes: int = 1) -> dict[str, Any]:
        """The report of a load that was left alone."""
        with self.loading(size, passes) as load:
            return load.report()

    def run(self, command: str) -> str:
        done = self.kztlab("exec", f"{self.lab}/{self.guest}", command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """The store's status; asked again while it is away."""
        while True:
            with suppress(HostUnable), self.kztlab.store(self.lab) as store:
                return store.status()
            time.sleep(0.02)

    def client(self) -> dict[str, Any]:
        """What the store says of the guest."""
        clients: list[dict[str, Any]] = self.status()["clients"]
        return next(each for each in clients if each["name"] == self.guest)

    def wait(self, load: Load, puts: int, but: set[int] | None = None) -> int:
        """Wait until the store's process, none of those given, has taken so many pages; that
        process."""
        while True:
            assert load.running, "the load ended too soon"
            status = self.status()
            (client,) = (each for each in status["clients"] if each["name"] == self.guest)
            if status["pid"] not in (but or ()) and client["counters"]["puts"] >= puts:
                pid: int = status["pid"]
                return pid
            time.sleep(0.02)

    def wait_more(self, load: Load, puts: int) -> int:
        """The same from now on."""
        return self.wait(load, self.client()["counters"]["puts"] + puts)


class Load:
    """A load at work."""

    def __init__(self, started: Started) -> None:
        self._started = started

    @property
    def running(self) -> bool:
        return self._started.process.poll() is None

    def killed(self) -> bool:
        """Whether it was killed, by its limit or by the kernel for want of memory."""
        code, stdout, stderr = self._started.end()
        print(f"exit code {code}: {stdout}{stderr}")  # a failed test shows it
        return code == 128 + signal.SIGKILL

    def report(self) -> dict[str, Any]:
        """Its report, once it has ended well."""
        code, stdout, stderr = self._started.end()
        assert code == 0, stderr or stdout
        report: dict[str, Any] = json.loads(stdout)
        print(  # `pytest -rP` shows it
            f"{report['pages']} pages, {report['bad_pages']} bad, {report['seconds']:.1f} s,"
            f" longest access {report['longest_access_seconds']:.3f} s"
        )
        assert (report["ok"], report["bad_pages"]) == (True, 0)
        return report
