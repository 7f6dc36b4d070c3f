# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory and files, each more than a guest has memory for, verified at once where its kernel asks
the store itself; the agent is killed meanwhile, and every fifth time the store as well.

The suite does that for a minute. `KZTLAB_MINUTES=30` does it for so many, with a minute from one
kill to the next.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import KILL_ALL, Swapper, number

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

MINUTES = number("KZTLAB_MINUTES", 0)
KILLS = MINUTES or 6
BETWEEN = 60 if MINUTES else 10
"""Seconds from one kill to the next."""

STORE = 5
"""Every so many kills the store dies, too."""

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.fault, pytest.mark.timeout(2400 + 120 * MINUTES)]

SPEC = """\
lab: together
store: {memory: 1GiB}
guests:
  t: {frontend: tmem, memory: 192MiB, swap: 1GiB}
"""

LONGEST = 10.0
"""Seconds. Not speed but liveness, restarts included."""

STATS = "/sys/class/misc/kztmem/stats"
CLEANCACHE = "/sys/kernel/mm/cleancache"


def test_no_page_of_memory_or_file_is_wrong(kztlab: Kztlab) -> None:
    kztlab.json("up", kztlab.spec("together", SPEC))
    guest = Swapper(kztlab, "together", "t")
    with (
        guest.filing("320MiB", KILLS * BETWEEN) as files,
        guest.loading("450MiB", again=True) as load,
    ):
        begun = time.monotonic()
        for kill in range(1, KILLS + 1):
            for _ in load.statuses():
                if time.monotonic() - begun >= kill * BETWEEN:
                    break
            guest.run(KILL_ALL, load)
            if kill % STORE == 0:
                os.kill(guest.status()["pid"], signal.SIGKILL)
        memory = load.report()
        operations = files.report()
    print(guest.run(f"cd {STATS} && grep . *; cd {CLEANCACHE} && grep . *"))  # -rP shows it
    assert memory["longest_access_seconds"] < LONGEST
    assert operations["longest_operation_seconds"] < LONGEST
    assert guest.counter(f"{STATS}/sessions") > KILLS
    for name in ("lost_pages", "guard_swap", "guard_cache"):
        assert guest.counter(f"{STATS}/{name}") == 0, name
    assert guest.counter(f"{CLEANCACHE}/succ_gets") > 1000
    assert kztlab("down", "together").returncode == 0
