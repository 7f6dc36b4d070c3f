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

import pytest

from kztlab.errors import HostUnable
from kztlab.guest import WORKLOAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab, Started

KILL_PUMP = "kill -KILL $(cat /run/kzt-agent.lock)"
KILL_ALL = "pkill -KILL -x kzt-agent"

# One writes as much as the guest has memory, and more, the other one reads as much.
PREPARE_FILES = """\
rm -f /root/enough
dd if=/dev/zero of=/root/clean bs=64k count=4096 2>/dev/null && sync"""
FILES = """\
until [ -e /root/enough ]; do
    dd if=/dev/zero of=/root/dirty bs=64k count=4096 conv=notrunc 2>/dev/null && echo written
done &
until [ -e /root/enough ]; do
    cat /root/clean >/dev/null && echo read
done
wait"""
ENOUGH_FILES = "touch /root/enough"

PAGES_BETWEEN = 1500
"""Pages that the store takes between two kills, so that all fall into a session and the load."""

ENOUGH = "/run/enough-loads"
"""While a guest has no such file its load begins again when it has ended."""

HANG_LIMIT = 60.0
"""Seconds. A load that swaps, and of which the store sees no page for so long, hangs. Who is killed
or stopped meanwhile costs a fraction of it, nbd's time-out and all."""


class VerificationError(AssertionError):
    """A load has found wrong pages, or gets none any more."""


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
        self,
        size: str,
        passes: int = 1,
        content: str = "mixed",
        *,
        seconds: int | None = None,
        again: bool = False,
    ) -> Iterator[Load]:
        """A load that runs meanwhile, where workloads do; killed after so many seconds, or `again`
        and again until its report is asked for."""
        load = f"kzt-load anon --size={size} --passes={passes} --content={content} --json"
        if again:
            # Each with other content, so that none is content with what another one has left.
            load = f"n=0; until [ -e {ENOUGH} ]; do n=$((n + 1)); {load} --seed=$n || exit; done"
        elif seconds:  # a shell stays, to tell a kill by an exit code
            load = f"timeout --foreground -s KILL {seconds} {load} || exit $?"
        else:
            load = f"exec {load}"
        command = f"rm -f {ENOUGH} && echo $$ >{WORKLOAD_GROUP}/cgroup.procs && {load}"
        with self.kztlab.start("exec", f"{self.lab}/{self.guest}", "--", command) as started:
            yield Load(started, self, again=again)

    def load(self, size: str, passes: int = 1) -> dict[str, Any]:
        """The report of a load that was left alone."""
        with self.loading(size, passes) as load:
            return load.report()

    def run(self, command: str, load: Load | None = None) -> str:
        """What a command prints; while it runs, pages of the load have to move, too."""
        with self.kztlab.start("exec", f"{self.lab}/{self.guest}", "--", command) as started:
            for _ in load.statuses() if load else ():
                if started.process.poll() is not None:
                    break
            code, stdout, stderr = started.end()
        assert code == 0, stderr
        return stdout

    @contextmanager
    def filing(self, size: str, seconds: int) -> Iterator[FileLoad]:
        """Meanwhile a load on files that verifies, where workloads run."""
        load = f"exec kzt-load files --folder=/root/load --size={size} --seconds={seconds} --json"
        command = f"echo $$ >{WORKLOAD_GROUP}/cgroup.procs && {load}"
        with self.kztlab.start("exec", f"{self.lab}/{self.guest}", "--", command) as started:
            yield FileLoad(started)

    def counter(self, path: str) -> int:
        """A counter of the guest's kernel, by its file."""
        return int(self.run(f"cat {path}"))

    @contextmanager
    def files(self, group: str = "/sys/fs/cgroup") -> Iterator[None]:
        """Meanwhile pages of files come and go, dirty and clean, more than there is memory for."""
        self.run(PREPARE_FILES)
        script = f"echo $$ >{group}/cgroup.procs\n{FILES}"
        with self.kztlab.start("exec", f"{self.lab}/{self.guest}", "--", script) as started:
            yield
            self.run(ENOUGH_FILES)
            code, said, stderr = started.end()
        assert code == 0, stderr
        assert {"written", "read"} <= set(said.split())

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

    def wait(
        self, load: Load, pages: int, but: set[int] | None = None, counter: str = "puts"
    ) -> int:
        """Wait until the store's process, none of those given, has taken (or, by the counter
        `gets`, given) so many pages; that process."""
        for status in load.statuses():
            (client,) = (each for each in status["clients"] if each["name"] == self.guest)
            if status["pid"] not in (but or ()) and client["counters"][counter] >= pages:
                pid: int = status["pid"]
                return pid
        load.report()
        pytest.fail("the load ended too soon")

    def wait_more(self, load: Load, pages: int, counter: str = "puts") -> int:
        """The same from now on."""
        return self.wait(load, self.client()["counters"][counter] + pages, counter=counter)

    def kill_agents(self, kills: int) -> None:
        """Kill the agent so often during a load; every fourth time its supervisor, and whoever
        stands by, die with it."""
        with self.loading("300MiB", again=True) as load:
            for kill in range(kills):
                # What the store has taken since the last kill came in a session begun since then.
                self.wait_more(load, PAGES_BETWEEN)
                self.run(KILL_ALL if kill % 4 == 3 else KILL_PUMP, load)
            load.report()


class FileLoad:
    """A load on files at work, which ends when its time is over."""

    def __init__(self, started: Started) -> None:
        self._started = started

    @property
    def running(self) -> bool:
        return self._started.process.poll() is None

    def report(self) -> dict[str, Any]:
        """Its report, once it has ended well."""
        code, stdout, stderr = self._started.end()
        assert stdout, f"exit code {code}: {stderr}"
        report: dict[str, Any] = json.loads(stdout)
        print(  # `pytest -rP` shows it
            said := f"{report['operations']} operations, {report['pages_read']} pages read,"
            f" {report['pages_written']} written, {report['bad_pages']} bad,"
            f" {report['seconds']:.1f} s,"
            f" longest operation {report['longest_operation_seconds']:.3f} s"
        )
        if not report["ok"] or report["bad_pages"]:
            raise VerificationError("\n".join([said, *report["errors"]]))
        assert code == 0, stderr
        return report


class Load:
    """A load at work."""

    def __init__(self, started: Started, swapper: Swapper, *, again: bool) -> None:
        self._started = started
        self._swapper = swapper
        self._again = again
        self._begun = False

    @property
    def running(self) -> bool:
        return self._started.process.poll() is None

    def killed(self) -> bool:
        """Whether it was killed, by its limit or by the kernel for want of memory."""
        code, stdout, stderr = self._started.end()
        print(f"exit code {code}: {stdout}{stderr}")  # a failed test shows it
        return code == 128 + signal.SIGKILL

    def statuses(self) -> Iterator[dict[str, Any]]:
        """What the store says, again and again until the load ends, as long as pages move; the
        first ones may take any time."""
        last, since = None, time.monotonic()
        while self.running:
            status = self._swapper.status()
            (client,) = (each for each in status["clients"] if each["name"] == self._swapper.guest)
            now = (status["pid"], client["counters"]["puts"], client["counters"]["gets"])
            if now != last:
                self._begun = self._begun or last is not None
                last, since = now, time.monotonic()
            elif self._begun and time.monotonic() - since > HANG_LIMIT:
                pid, puts, gets = now
                raise VerificationError(
                    f"no page has moved for {HANG_LIMIT:.0f} s: the store (process {pid})"
                    f" still has {puts} puts and {gets} gets"
                )
            yield status
            time.sleep(0.02)

    def report(self) -> dict[str, Any]:
        """Its report, once it has ended well; of several the one with the longest access."""
        if self._again:
            self._swapper.run(f"touch {ENOUGH}", self)
        for _ in self.statuses():
            time.sleep(0.5)
        code, stdout, stderr = self._started.end()
        reports: list[dict[str, Any]] = [json.loads(line) for line in stdout.splitlines()]
        assert reports, f"exit code {code}: {stderr}"
        for report in reports:
            print(  # `pytest -rP` shows it
                said := f"{report['pages']} pages, {report['bad_pages']} bad,"
                f" {report['seconds']:.1f} s,"
                f" longest access {report['longest_access_seconds']:.3f} s"
            )
            if not report["ok"] or report["bad_pages"]:
                wrong = [str(each) for each in report["errors"]]
                kernel = self._swapper.run("dmesg | tail -n 100")
                raise VerificationError("\n".join([said, *wrong, kernel]))
        assert code == 0, stderr
        return max(reports, key=lambda report: float(report["longest_access_seconds"]))
