# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose kernel asks the store itself, by tmem; store, agent and port go away meanwhile."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.kernel import COMPLAINT, SELF_CHECK
from tests.support.swapping import PAGES_BETWEEN, Swapper, number
from tests.support.unplugged import wait_for_the_next_port

from kztlab.hypervisor.xml import TMEM_PORT
from kztlab.image.linux import DEBUG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

KILLS = number("KZTLAB_KILLS", 4)

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400 + 60 * KILLS)]

# A kernel that checks itself takes more memory, and much more time.
MEMORY, MIB = "memory: 192MiB", 300
if os.environ.get(DEBUG):
    MEMORY, MIB = "memory: 512MiB, workload_memory_max: 96MiB", 160

SPEC = f"""\
lab: asking
guests:
  t: {{frontend: tmem, {MEMORY}, swap: 1GiB}}
workloads:
  - {{name: fill, on: [t], anon: {{size: {MIB}MiB}}}}
"""
PAGES = (MIB << 20) // 4096

KILL_AGENT = "pkill -KILL -x kzt-agent"


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[dict[str, Any]]:
    """The lab is up and its load has run; what `up` has to say of it."""
    yield kztlab.json("up", kztlab.spec("asking", SPEC))
    log = Swapper(kztlab, "asking", "t").run(SELF_CHECK)
    assert not COMPLAINT.search(log), log
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
    with guest.loading(f"{MIB}MiB", again=True) as load:
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


@pytest.mark.fault
def test_a_load_waits_for_a_port_that_was_unplugged(guest: Swapper) -> None:
    wait_for_the_next_port(guest, TMEM_PORT, f"{MIB}MiB")
    assert int(guest.run("cat /sys/class/misc/kztmem/stats/lost_pages")) == 0
