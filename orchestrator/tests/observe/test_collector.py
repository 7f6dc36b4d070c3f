# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kztlab.observe import Collector, HostSampler, Poller, StoreSampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from kztlab.observe import Recorder, RunDirectory, Sample

    Until = Callable[[str, Callable[[list[Sample]], bool]], list[Sample]]


def test_samplers_run_side_by_side_and_can_come_late(run: RunDirectory, until: Until) -> None:
    with Collector(run, 0.01) as collector:
        collector.add(HostSampler(dict))
        until("host", lambda samples: len(samples) >= 2)
        collector.add(StoreSampler(lambda: {"codec": "lzo"}))
        until("store", lambda samples: len(samples) >= 2)
    assert collector.failures == []
    assert not {each.name for each in threading.enumerate()} & {"host", "store"}


def test_a_store_that_does_not_answer_is_a_gap_and_no_more(run: RunDirectory, until: Until) -> None:
    answers = iter([{"codec": "lzo"}])

    def fetch() -> Sample:
        answer = next(answers, None)
        if answer is None:
            message = "connection refused"
            raise ConnectionRefusedError(message)
        return answer

    with Collector(run, 0.01) as collector:
        collector.add(StoreSampler(fetch))
        samples = until("store", lambda found: len(found) >= 2)
    assert [sample.get("gap") for sample in samples] == [
        None,
        "ConnectionRefusedError: connection refused",
    ]
    assert collector.failures == []


def test_a_full_disk_ends_the_sampler_and_nothing_else(run: RunDirectory) -> None:
    (run.path / "samples" / "host.jsonl").symlink_to("/dev/full")
    with Collector(run, 0.01) as collector:
        collector.add(HostSampler(dict))
        while not collector.failures:
            threading.Event().wait(0.01)
    assert collector.failures == [
        "no more samples of host: OSError: [Errno 28] No space left on device"
    ]


def test_stopping_does_not_wait_for_the_next_sample(run: RunDirectory, until: Until) -> None:
    """With an hour between samples, stopping would otherwise take the test's time limit."""
    with Collector(run, 3600) as collector:
        collector.add(HostSampler(dict))
        until("host", bool)
    assert not {"host", "last host"} & {each.name for each in threading.enumerate()}
    assert len(run.samples("host")) == 2, "the first one and one when it was stopped"


def test_a_sampler_that_is_stuck_is_left_behind_and_drops_what_it_has(
    run: RunDirectory,
) -> None:
    release, entered = threading.Event(), threading.Semaphore(0)

    class Stuck(Poller):
        source = "stuck"

        def sample(self) -> Sample:
            entered.release()
            release.wait()
            return {"late": True}

    with Collector(run, 0.01) as collector:
        collector.add(Stuck())
        entered.acquire()
    left = [each for each in threading.enumerate() if each.name in {"stuck", "last stuck"}]
    assert len(left) == 2
    release.set()
    for thread in left:
        thread.join()
    assert run.samples("stuck") == []


def test_slow_samples_skip_the_times_they_overran(run: RunDirectory) -> None:
    """A sampler never hurries after what it missed: samples keep to multiples of the interval."""
    waits: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return len(waits) == 3

    class Slow(Poller):
        source = "slow"

        def sample(self) -> Sample:
            threading.Event().wait(0.25)
            return {}

    recorder: Recorder = run.recorder("slow")
    Slow().run(recorder, 0.2, Clock())
    recorder.close()
    assert len(run.samples("slow")) == 3
    assert all(0 < wait <= 0.2 for wait in waits)
