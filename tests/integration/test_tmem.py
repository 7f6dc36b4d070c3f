# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose kernel asks the store itself, by tmem; store and agent are killed meanwhile."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.swapping import PAGES_BETWEEN, Swapper, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

KILLS = number("KZTLAB_KILLS", 4)

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400 + 60 * KILLS)]

SPEC = """\
lab: asking
guests:
  t: {frontend: tmem, memory: 192MiB, swap: 1GiB}
workloads:
  - {name: fill, on: [t], anon: {size: 300MiB}}
"""
PAGES = (300 << 20) // 4096

KILL_AGENT = "pkill -KILL -x kzt-agent"


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[dict[str, Any]]:
    """The lab is up and its load has run; what `up` has to say of it."""
    yield kztlab.json("up", kztlab.spec("asking", SPEC))
    assert kztlab("down", "asking").returncode == 0


@pytest.fixture
def guest(lab: dict[str, Any], kztlab: Kztlab) -> Swapper:
    return Swapper(kztlab, lab["lab"], "t")


def test_every_page_comes_back_right(lab: dict[str, Any], guest: Swapper) -> None:
    (found,) = lab["guests"]
    assert found["frontend"] == "tmem"
    (load,) = found["workloads"]
    assert (load["ok"], load["bad_pages"]) == (True, 0)
    assert min(found["swapped_out_pages"], found["swapped_in_pages"]) >= 0.3 * PAGES
    # In the store and not on the disk that it has for what the store refuses.
    assert guest.client()["counters"]["puts"] >= 0.3 * PAGES
    assert guest.client()["tmem_counters"]["damaged_frames"] == 0


@pytest.mark.fault
def test_no_page_is_lost_with_store_or_agent(guest: Swapper) -> None:
    killed: set[int] = set()
    with guest.loading("300MiB", again=True) as load:
        for _ in range(KILLS):
            pid = guest.wait(load, PAGES_BETWEEN, but=killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            guest.wait(load, PAGES_BETWEEN, but=killed)
            guest.run(KILL_AGENT, load)
            guest.wait_more(load, PAGES_BETWEEN)
        load.report()
    lost = guest.run("cat /sys/class/misc/kztmem/stats/lost_pages")
    assert int(lost) == 0
