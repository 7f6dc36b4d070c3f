# SPDX-License-Identifier: GPL-2.0-or-later
"""All of the agent's processes are killed where not only workloads but the whole guest is short of
memory: who starts the agent again must not wait for it.

The suite does it a few times, and `KZTLAB_KILLS=20` so many times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import KILL_ALL, PAGES_BETWEEN, Swapper, number

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

KILLS = number("KZTLAB_KILLS", 4)

pytestmark = [pytest.mark.guest, pytest.mark.fault, pytest.mark.timeout(300 + 60 * KILLS)]

SPEC = """\
lab: starved
guests:
  r: {frontend: relay, memory: 192MiB, swap: 512MiB}
"""


def test_the_agent_comes_back_to_a_guest_without_memory(kztlab: Kztlab) -> None:
    kztlab.json("up", kztlab.spec("starved", SPEC))
    guest = Swapper(kztlab, "starved", "r")
    with guest.files(), guest.loading("300MiB", again=True) as load:
        for _ in range(KILLS):
            guest.wait_more(load, PAGES_BETWEEN)
            guest.run(KILL_ALL, load)
        load.report()
    assert kztlab("down", "starved").returncode == 0
