# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for guests that come up, that don't, and that go away meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.errors import GuestLost, Interrupted
from kztlab.guest import wait_ready
from kztlab.lab.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from kztlab.hypervisor import GuestState
    from tests.conftest import Machines
    from tests.guest.conftest import Ready

pytestmark = pytest.mark.guest

STEPS = ["kernel console", "SSH banner", "SSH login"]


def silent(_step: str, _elapsed: float, _limit: float) -> None:
    pass


@pytest.fixture
def wait(machines: Machines) -> Callable[[GuestState, float], object]:
    keys = Keys.of(machines.folder / "keys")
    return lambda guest, limit: wait_ready(
        machines.hypervisor, guest, keys, limit=limit, progress=silent
    )


def test_steps_are_told_in_order(ready: Ready) -> None:
    told: list[tuple[str, float, float]] = []

    def progress(step: str, elapsed: float, limit: float) -> None:
        told.append((step, elapsed, limit))

    with wait_ready(
        ready.hypervisor, ready.guest, ready.keys, limit=60, progress=progress
    ) as shell:
        assert shell.run("echo in").stdout == "in\n"
    assert list(dict.fromkeys(step for step, _, _ in told)) == STEPS
    assert all(0 <= elapsed < limit == 60 for _, elapsed, limit in told)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_can_be_interrupted(ready: Ready, step: str) -> None:
    def progress(at: str, _elapsed: float, _limit: float) -> None:
        if at == step:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        wait_ready(ready.hypervisor, ready.guest, ready.keys, limit=60, progress=progress)


def test_panic_while_waiting_ends_the_wait(
    machines: Machines, wait: Callable[[GuestState, float], object]
) -> None:
    guest = machines.start("g", init="echo going; sleep 1; exit 3")
    with pytest.raises(GuestLost) as lost:
        wait(guest, 3600)
    assert "guest g panicked: Attempted to kill init" in lost.value.message
    assert "    | going" in lost.value.message
    assert str(guest.console_log) in lost.value.message


def test_guest_ended_while_waiting_ends_the_wait(
    machines: Machines, wait: Callable[[GuestState, float], object]
) -> None:
    guest = machines.start("g", init="while :; do sleep 1; done")
    machines.hypervisor.destroy(machines.lab, "g")
    with pytest.raises(GuestLost, match="guest g was ended through libvirt, at step"):
        wait(guest, 3600)


def test_boot_that_hangs_names_step_limit_and_hint(
    machines: Machines, wait: Callable[[GuestState, float], object]
) -> None:
    guest = machines.start("g", init="while :; do echo still here; sleep 1; done")
    with pytest.raises(GuestLost) as lost:
        wait(guest, 8)
    assert "not ready after 8 s: it stopped at step 'SSH banner'" in lost.value.message
    assert "    | still here" in lost.value.message
    assert lost.value.hint is not None


def test_other_host_key_is_refused(ready: Ready, machines: Machines) -> None:
    stranger = Keys.of(machines.folder / "keys")
    with pytest.raises(GuestLost, match="another SSH host key"):
        wait_ready(ready.hypervisor, ready.guest, stranger, limit=60, progress=silent)
