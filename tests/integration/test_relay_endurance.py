# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest swaps more than twice its memory over the relay, again and again, in hard conditions.

The suite does one short round of each. `KZTLAB_ROUNDS=10` does ten of full size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.swapping import Swapper, number

from kztlab.guest import WORKLOAD_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

ROUNDS = number("KZTLAB_ROUNDS", 0)
SIZE = "450MiB" if ROUNDS else "288MiB"

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300 + 600 * ROUNDS)]

SPEC = """\
lab: endurance
store: {memory: 1GiB}
guests:
  one: {frontend: relay, memory: 192MiB, swap: 1GiB}
  two: {frontend: relay, memory: 192MiB, swap: 1GiB, vcpus: 2}
"""

LONGEST_ACCESS = 10.0
"""Seconds. Not speed but liveness: what takes longer would soon be a hang."""


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[Kztlab]:
    kztlab.json("up", kztlab.spec("endurance", SPEC))
    yield kztlab
    assert kztlab("down", "endurance").returncode == 0


def rounds(swapper: Swapper, count: int) -> None:
    for _ in range(max(1, count)):
        report = swapper.load(SIZE)
        assert report["longest_access_seconds"] < LONGEST_ACCESS
    agent: dict[str, Any] = swapper.client()["guest"]["stats"]["agent"]
    assert agent["allocations"] == 0
    assert agent["errors"] == 0
    print("longest stall of a request:", agent["longest_stall_seconds"], "s")


@pytest.mark.parametrize("guest", ["one", "two"])
def test_every_page_comes_back_and_soon(lab: Kztlab, guest: str) -> None:
    rounds(Swapper(lab, "endurance", guest), ROUNDS)


@pytest.mark.parametrize("group", ["/sys/fs/cgroup", WORKLOAD_GROUP])
def test_every_page_comes_back_beside_files(lab: Kztlab, group: str) -> None:
    """The kernel has dirty and clean file pages to reclaim, too: within the load's limit, and with
    nothing but the guest's memory to bound them."""
    swapper = Swapper(lab, "endurance", "one")
    with swapper.files(group):
        rounds(swapper, (ROUNDS + 1) // 2)
