# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests made ready for workloads. The tests share a guest: each says first how it is to be."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import GuestLost, Interrupted
from kztlab.guest import WORKLOAD_GROUP, Prepared, prepare
from kztlab.spec.model import GuestSpec
from tests.guest.conftest import SWAP

if TYPE_CHECKING:
    from tests.guest.conftest import Ready

pytestmark = pytest.mark.guest

HEADER = 4096
"""mkswap's page, which holds no swap."""


def prepared(ready: Ready, **spec: object) -> Prepared:
    return prepare(ready.shell, GuestSpec.model_validate(spec), progress=lambda *_: None)


def read(ready: Ready, command: str) -> str:
    done = ready.shell.run(command, timeout=60)
    assert done.exit == 0, done.stderr
    return done.stdout.strip()


def swaps(ready: Ready) -> list[str]:
    return [line.split()[0] for line in read(ready, "tail -n +2 /proc/swaps").splitlines()]


def test_swap_disk_is_found_by_its_serial_and_discards(ready: Ready) -> None:
    for _ in range(2):
        facts = prepared(ready, frontend="disk")
        assert swaps(ready) == [facts.device]
    assert facts.swap_bytes == SWAP - HEADER
    name = facts.device.removeprefix("/dev/")
    assert read(ready, f"cat /sys/block/{name}/serial") == "kztswap0"
    assert int(read(ready, f"cat /sys/block/{name}/queue/discard_granularity")) == 4096
    # Else the kernel has no clusters of slots, and discards none of them.
    assert read(ready, f"cat /sys/block/{name}/queue/rotational") == "0"


def test_zram_takes_the_place_of_the_disk(ready: Ready) -> None:
    prepared(ready, frontend="disk")
    facts = prepared(ready, frontend="zram", swap="64MiB")
    assert swaps(ready) == ["/dev/zram0"]
    assert facts.swap_bytes == (64 << 20) - HEADER
    assert f"[{facts.algorithm}]" in read(ready, "cat /sys/block/zram0/comp_algorithm")


def test_none_leaves_no_swap(ready: Ready) -> None:
    prepared(ready, frontend="disk")
    facts = prepared(ready, frontend="none")
    assert (facts.device, facts.swap_bytes) == ("", 0)
    assert swaps(ready) == []


def test_workloads_stay_below_the_guests_memory(ready: Ready) -> None:
    facts = prepared(ready, frontend="none")
    total = int(read(ready, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) << 10
    free = int(read(ready, "cat /proc/sys/vm/min_free_kbytes")) << 10
    assert facts.memory_max == (total - free * 3 // 2 - (32 << 20)) // 4096 * 4096
    assert int(read(ready, f"cat {WORKLOAD_GROUP}/memory.max")) == facts.memory_max


def test_limit_of_the_workloads_can_be_set(ready: Ready) -> None:
    facts = prepared(ready, frontend="none", workload_memory_max="48MiB")
    assert facts.memory_max == 48 << 20


def test_limit_holds(ready: Ready) -> None:
    prepared(ready, frontend="none", workload_memory_max="16MiB")
    hog = "exec head -c 64M /dev/zero | tail -c 64M >/dev/null"
    done = ready.shell.run(f"echo $$ >{WORKLOAD_GROUP}/cgroup.procs; {hog}", timeout=120)
    assert done.exit == 137


def test_guest_without_the_disk_says_so(ready: Ready) -> None:
    script = files("kztlab.guest").joinpath("prepare.sh").read_text()
    done = ready.shell.run("sh -s -- swap disk no-such-serial 0", input=script, timeout=60)
    assert done.exit == 1
    assert "no disk with the serial number no-such-serial" in done.stderr


def test_guest_without_an_agent_says_so(ready: Ready) -> None:
    """init keeps the image's own agent script alive, which has no port and so no agent."""
    with pytest.raises(GuestLost, match="this image has no kzt-agent"):
        prepared(ready, frontend="relay")


def test_every_step_can_be_interrupted(ready: Ready) -> None:
    for step in ("swap on", "cgroup"):

        def progress(at: str, _elapsed: float, _limit: float, step: str = step) -> None:
            if at == step:
                raise Interrupted("enough")

        with pytest.raises(Interrupted):
            prepare(ready.shell, GuestSpec(frontend="none"), progress=progress)


def test_a_step_that_takes_too_long_loses_the_guest(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[prepare.__module__], "STEP_SECONDS", 0.0)
    with pytest.raises(GuestLost, match="step 'swap on' took over 0 s"):
        prepared(ready, frontend="none")


def test_failure_is_told_in_the_guests_words(ready: Ready) -> None:
    with pytest.raises(GuestLost, match=f"zram refuses a size of {8 << 40} bytes"):
        prepared(ready, frontend="zram", swap="8TiB")


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_script_runs_in_every_shell(ready: Ready, shell: str) -> None:
    script = files("kztlab.guest").joinpath("prepare.sh").read_text()
    done = ready.shell.run(f"{shell} -s -- swap disk kztswap0 0", input=script, timeout=60)
    assert (done.exit, done.stderr) == (0, "")
    assert f"swap_bytes={SWAP - HEADER}\n" in done.stdout
    done = ready.shell.run(f"{shell} -s -- cgroup {WORKLOAD_GROUP} 0 1048576", input=script)
    assert (done.exit, done.stderr) == (0, "")
    assert done.stdout.startswith("memory_max=")
