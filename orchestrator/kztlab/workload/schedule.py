# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a lab's workloads: all at once, each on its guests one `stagger` after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kztlab.errors import GuestLost, Interrupted, KztlabError
from kztlab.guest import CommandTimeout, Completed, Shell
from kztlab.parallel import in_parallel
from kztlab.spec import format_duration
from kztlab.workload import command
from kztlab.workload.result import (
    FilesReport,
    LoadReport,
    Outcome,
    judge_command,
    judge_load,
    tail,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from kztlab.lab.progress import Progress
    from kztlab.spec import Cluster, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Runner:
    """A guest that workloads can be run on."""

    guest: str
    shell: Shell
    group: str
    """The guest's workload control group: a folder below /sys/fs/cgroup."""


def run_all(
    cluster: Cluster, runners: Mapping[str, Runner], progress: Progress, stop: threading.Event
) -> list[Outcome]:
    """Run every workload on all of its guests; an outcome for each, in the file's order.

    An exception in the caller ends what still runs in the guests and passes on.
    """
    jobs: dict[tuple[str, str], Callable[[], Outcome]] = {}
    for workload in cluster.workloads:
        for turn, guest in enumerate(cluster.targets(workload)):
            runner = runners[guest.name]
            delay = turn * workload.stagger
            jobs[workload.name, guest.name] = partial(_run, runner, workload, delay, progress, stop)
    outcomes = []
    for result in in_parallel(jobs, stop).values():
        if isinstance(result, KztlabError):
            raise result
        outcomes.append(result)
    return outcomes


def _run(
    runner: Runner,
    workload: WorkloadSpec,
    delay: float,
    progress: Progress,
    stop: threading.Event,
) -> Outcome:
    subject = f"{runner.guest}: {workload.name}"
    if delay:
        progress.step(subject, f"starts in {format_duration(delay)}")
    if stop.wait(delay):
        raise Interrupted("interrupted")
    progress.step(subject, "running", 0.0, workload.timeout)
    outcome = _attempt(runner, workload, stop)
    progress.done(subject, _told(outcome), ok=outcome.ok)
    return outcome


def _attempt(runner: Runner, workload: WorkloadSpec, stop: threading.Event) -> Outcome:
    started = time.monotonic()
    lost = False
    done: Completed | None = None
    failure: str | None = None

    def waiting() -> None:
        if stop.is_set():
            raise Interrupted("interrupted")

    script = command.start(workload, runner.group)
    try:
        done = runner.shell.run(script, timeout=workload.timeout, waiting=waiting)
    except CommandTimeout:
        failure = f"ended after its timeout of {format_duration(workload.timeout)}"
    except GuestLost as error:
        failure, lost = error.message, True
    report = None
    output = tail(done.stdout + done.stderr) if done else ""
    if done and not workload.command:
        report, failure = judge_load(LoadReport if workload.anon else FilesReport, done)
        output = tail(done.stderr) if report else output
    elif done:
        failure = judge_command(done)
    return Outcome(
        workload.name,
        runner.guest,
        started,
        time.monotonic(),
        failure=failure,
        lost=lost,
        report=report,
        output=output,
    )


def _told(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure.splitlines()[0]
    match outcome.report:
        case LoadReport() as report:
            verified = f", {report.pages} pages, 0 bad"
        case FilesReport() as report:
            verified = f", {report.operations} operations, {report.pages_read} pages read, 0 bad"
        case None:
            verified = ""
    return f"done in {outcome.seconds:.1f} s{verified}"
