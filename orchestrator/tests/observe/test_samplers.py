# SPDX-License-Identifier: GPL-2.0-or-later
"""Samplers on what is there to sample: this machine, and its shell in the place of a guest's."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kztlab.observe import GuestSampler, HostSampler, StoreSampler
from kztlab.observe.guest import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from kztlab.observe import RunDirectory, Sample

    Until = Callable[[str, Callable[[list[Sample]], bool]], list[Sample]]


def local(command: str) -> Iterator[str]:
    """Runs a command here and yields its lines, as a guest's shell does there."""
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield from process.stdout
        finally:
            process.kill()


def test_the_host() -> None:
    gone, defunct = subprocess.Popen(["true"]), subprocess.Popen(["true"])
    gone.wait()
    os.waitid(os.P_PID, defunct.pid, os.WEXITED | os.WNOWAIT)
    processes = {"me": os.getpid(), "gone": gone.pid, "defunct": defunct.pid}
    sampler = HostSampler(lambda: processes)
    first, second = sampler.sample(), sampler.sample()
    assert "cpu" not in first
    assert 0 <= second.get("cpu", 0) <= 1
    assert 0 < second["memory"]["available"] <= second["memory"]["total"]
    assert 0 <= second["shm"]["used"] <= second["shm"]["size"]
    assert list(second["guests"]) == ["me"]
    assert second["guests"]["me"]["resident"] > 1 << 20
    assert second["guests"]["me"]["cpu_seconds"] > 0
    defunct.wait()


def test_the_store_is_kept_as_it_is() -> None:
    assert StoreSampler(lambda: {"codec": "lzo"}).sample() == {"status": {"codec": "lzo"}}


def test_a_guest_by_its_own_shell(run: RunDirectory, until: Until, tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("4096\n", encoding="ascii")
    (tmp_path / "memory.swap.current").write_text("8192\n", encoding="ascii")
    recorder, stop = run.recorder("guest-a"), threading.Event()
    sampler = GuestSampler("a", local, cgroup=str(tmp_path))
    thread = threading.Thread(target=sampler.run, args=(recorder, 0.05, stop))
    thread.start()
    samples = until("guest-a", lambda found: len(found) >= 3)
    stop.set()
    thread.join()
    recorder.close()
    for sample in samples:
        assert sample["meminfo"]["MemTotal"] > sample["meminfo"]["MemAvailable"] > 1 << 20
        assert sample["vmstat"]["pswpout"] >= 0
        assert sample["vmstat"]["pswpin"] >= 0
        assert sample["uptime"] > 0
        assert sample["cgroup"] == {"current": 4096, "swap": 8192}
    assert samples[0]["mono"] < samples[1]["mono"] < samples[2]["mono"]


def test_a_guest_that_breaks_off_is_asked_again(run: RunDirectory, until: Until) -> None:
    streams: Iterator[Iterable[str]] = chain(
        [["/proc/uptime:1.0 0.5", "", "/proc/uptime:2.0 0.5", ""]],
        repeat(["/proc/uptime:9.0 1", ""]),
    )
    calls: list[str] = []

    def stream(command: str) -> Iterator[str]:
        calls.append(command)
        yield from next(streams)
        if len(calls) == 1:
            message = "connection lost"
            raise OSError(message)

    recorder, stop = run.recorder("guest-a"), threading.Event()
    thread = threading.Thread(target=GuestSampler("a", stream).run, args=(recorder, 0.01, stop))
    thread.start()
    samples = until("guest-a", lambda found: len(found) >= 5)
    stop.set()
    thread.join()
    recorder.close()
    assert [sample.get("uptime") or sample["gap"] for sample in samples[:5]] == [
        1.0,
        2.0,
        "OSError: connection lost",
        9.0,
        "the guest ended the stream",
    ]


@pytest.mark.parametrize("flood", [["x" * 500], ["no sample"] * 1000], ids=["width", "length"])
def test_a_guest_that_floods_its_stream_is_cut_off(
    run: RunDirectory, until: Until, flood: list[str]
) -> None:
    recorder, stop = run.recorder("guest-a"), threading.Event()
    sampler = GuestSampler("a", lambda _: iter(flood))
    thread = threading.Thread(target=sampler.run, args=(recorder, 0.01, stop))
    thread.start()
    (gap,) = until("guest-a", bool)
    stop.set()
    thread.join()
    recorder.close()
    assert gap["gap"] == "ValueError: the guest prints no samples"


def test_a_guest_without_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("sh", "grep", "sleep"):
        program = shutil.which(tool)
        assert program is not None
        (tmp_path / tool).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GuestSampler("a", local).sample()["vmstat"]["pswpout"] >= 0


def test_one_sample_of_a_guest() -> None:
    assert GuestSampler("a", local).sample()["meminfo"]["MemTotal"] > 1 << 20
    with pytest.raises(ValueError, match="no sample"):
        GuestSampler("a", lambda _: iter(["what?"])).sample()


BLOCK = """\
/proc/uptime:12.50 8.00
/proc/meminfo:MemTotal:         153000 kB
/proc/meminfo:HugePages_Total:       0
/proc/vmstat:pswpin 7
/proc/vmstat:pswpout 99999999999999999999999
/proc/pressure/memory:some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000
/proc/pressure/memory:full avg10=0.00 avg60=0.00 avg300=0.00 total=1000000
/sys/fs/cgroup/workload/memory.current:40960
/etc/passwd:root
nonsense
"""


def test_what_a_guest_prints_is_read_in_bytes_and_seconds() -> None:
    assert parse(BLOCK.splitlines()) == {
        "uptime": 12.5,
        "meminfo": {"MemTotal": 153000 * 1024},
        "vmstat": {"pswpin": 7},
        "pressure": {"memory": {"some": 2.5, "full": 1.0}},
        "cgroup": {"current": 40960},
    }


WORDS = st.sampled_from(
    [
        *("/proc/", "meminfo", "vmstat", "uptime", "pressure/", "memory", ".current", ":", " "),
        *("MemTotal", "some ", "total=", "9", "0" * 30, "kB", "-1", "\x00", "é", "."),
    ]
)


@given(st.lists(st.lists(WORDS, max_size=12).map("".join) | st.text(), max_size=5))
def test_whatever_a_guest_prints_is_a_sample_of_known_shape(lines: list[str]) -> None:
    sample: dict[str, Any] = parse(lines)
    known = {"uptime", "meminfo", "vmstat", "pressure", "cgroup"}
    assert set(sample) <= known
