# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a lab: samples, workloads, results, and the directory that keeps them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

from kztlab.errors import HostUnable, KztlabError, WorkloadFailed
from kztlab.guest import WORKLOAD_GROUP, lost
from kztlab.lab import processes
from kztlab.lab.watch import Watch
from kztlab.observe import Collector, GuestSampler, HostSampler, RunDirectory, StoreSampler
from kztlab.report import (
    Ran,
    RunError,
    Summary,
    WorkloadResult,
    summarize,
    write_junit,
    write_report,
)
from kztlab.store import StoreClient
from kztlab.workload import Outcome, Runner, run_all

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from kztlab.lab.session import Member, Session


SETTLE = 2.0
"""Seconds at most between the last workload's end and that of the sampling."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to; the lab is up, in whole or in part."""

    summary: Summary
    failure: KztlabError | None
    """The worst of what went wrong."""


class Run:
    """A run from before its guests boot to its report; leaving it ends the sampling."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._started = datetime.now(UTC)
        self._origin = time.monotonic()
        self._failures: list[tuple[KztlabError, str | None]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        session = self._session
        self._directory = _create(session, self._started)
        session.record.run = self._directory.path
        session.save()
        interval = session.record.cluster.collect.interval
        self._collector = self._stack.enter_context(Collector(self._directory, interval))
        self._watch = self._stack.enter_context(Watch(session))
        self._stack.callback(self._keep_consoles)
        self._collector.add(
            HostSampler(partial(processes.guests, session.places, session.record.lab))
        )
        if session.record.store is not None:
            self._collector.add(StoreSampler(partial(_status, session.record.store.socket)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, member: Member) -> None:
        """A guest is ready: watch and sample it from now on."""
        self._watch.add(member)
        self._collector.add(GuestSampler(member.name, member.shell.stream, cgroup=WORKLOAD_GROUP))

    def fail(self, error: KztlabError, *, guest: str | None = None) -> None:
        """Something went wrong that is no workload's fault."""
        self._failures.append((error, guest))

    def finish(self, members: Mapping[str, Member]) -> Result:
        """Run the workloads if all guests got ready; then sum up and write the report."""
        outcomes: list[Outcome] = []
        cluster = self._session.record.cluster
        if not self._failures:
            runners = {
                name: Runner(name, member.shell, WORKLOAD_GROUP) for name, member in members.items()
            }
            outcomes = run_all(cluster, runners, self._session.progress, self._session.stop)
            # A guest too crowded for the last sample at the end has had its regular one by then.
            self._session.stop.wait(min(cluster.collect.interval, SETTLE))
            self._watch.look()
        silent = {each.guest for each in outcomes if each.lost}
        for member in members.values():
            loss = member.loss
            if loss is None and member.name in silent:
                loss = lost(member.state, "is there but its SSH connection broke")
            if loss is not None:
                self.fail(loss, guest=member.name)
        failure = self._worst(outcomes)
        try:
            return Result(self._report(outcomes), failure)
        except OSError as error:
            if failure is None:
                failure = HostUnable(
                    f"cannot write to {self._directory.path}: {error.strerror}", hint="make room"
                )
            raise failure from error  # what went wrong before is more worth knowing

    def _report(self, outcomes: list[Outcome]) -> Summary:
        """End the sampling and write what it came to."""
        self._session.progress.step("report", "writing")
        self._stack.close()
        summary = self._sum_up(outcomes)
        write_junit(self._directory)
        write_report(self._directory)
        self._session.progress.done("report", str(self._directory.report))
        return summary

    def _sum_up(self, outcomes: list[Outcome]) -> Summary:
        lab = self._session.record
        return summarize(
            self._directory,
            accel=lab.accel or "",
            started=self._started,
            origin=self._origin,
            ended=time.monotonic(),
            ran=[
                Ran(
                    guest=guest.name,
                    client=guest.client,
                    workloads=[_result(each) for each in outcomes if each.guest == guest.name],
                )
                for guest in lab.guests.values()
            ],
            versions=self._versions(),
            errors=[
                RunError(message=self._told(error), guest=guest) for error, guest in self._failures
            ],
            warnings=self._collector.failures,
        )

    def _versions(self) -> dict[str, str]:
        """Of what took part, as far as it can be asked; QEMU's as libvirt counts it."""
        number = self._session.hypervisor.qemu_version()
        qemu = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
        return {"kztlab": version("kztlab"), "QEMU": qemu}

    def _worst(self, outcomes: list[Outcome]) -> KztlabError | None:
        failures = [error for error, _ in self._failures]
        failed = [each for each in outcomes if not each.ok and not each.lost]
        if failed:
            told = "\n".join(f"  {each.guest}: {each.workload}: {each.failure}" for each in failed)
            failures.append(WorkloadFailed(f"{len(failed)} workload runs failed:\n{told}"))
        if not failures:
            return None
        failures.sort(key=lambda error: -error.exit_code)
        worst = failures[0]
        return type(worst)("\n".join(map(self._told, failures)), hint=worst.hint)

    def _told(self, error: KztlabError) -> str:
        """Its message, with the consoles' copies that outlive the lab."""
        message = error.message
        for guest in self._session.record.guests.values():
            message = message.replace(str(guest.console), str(self._directory.console(guest.name)))
        return message

    def _keep_consoles(self) -> None:
        for guest in self._session.record.guests.values():
            self._directory.keep_console(guest.name, guest.console)


def _create(session: Session, started: datetime) -> RunDirectory:
    lab = session.record
    session.places.folder(session.places.runs, 0o755)
    stamp = f"{started:%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        path = session.places.runs / f"{lab.lab}-{stamp}{suffix}"
        try:
            return RunDirectory.create(path, lab.cluster)
        except FileExistsError:
            continue
        except OSError as error:
            raise HostUnable(f"cannot create {path}: {error.strerror}") from error
    raise HostUnable(f"there are a hundred runs of {lab.lab} begun at {stamp} already")


def _status(socket: Path) -> dict[str, object]:
    with StoreClient(socket) as store:
        return store.status()


def _result(outcome: Outcome) -> WorkloadResult:
    told = outcome.report.model_dump() if outcome.report else {}
    figures = ("pages", "longest_access_seconds", "operations", "pages_read", "pages_written")
    return WorkloadResult(
        **{name: told.get(name) for name in (*figures, "longest_operation_seconds")},
        name=outcome.workload,
        ok=outcome.ok,
        seconds=round(outcome.seconds, 3),
        bad_pages=outcome.bad_pages,
        started=outcome.started,
        ended=outcome.ended,
        failure=outcome.failure,
        output=outcome.output,
    )
