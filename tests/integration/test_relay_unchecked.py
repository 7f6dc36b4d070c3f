# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that does not keep a port's sessions apart fails where agents are killed.

`test_relay.py` has the same load and kills, and the store as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support import unchecked
from tests.support.swapping import Swapper, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault, pytest.mark.timeout(900)]

SPEC = """\
lab: unchecked
guests:
  r: {frontend: relay, memory: 192MiB, swap: 1GiB}
"""


@pytest.fixture
def guest(kztlab: Kztlab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Swapper]:
    """A guest of such a store."""
    monkeypatch.setenv("PYTHONPATH", str(unchecked.package(kztlab.home)))
    kztlab.json("up", kztlab.spec("unchecked", SPEC))
    yield Swapper(kztlab, "unchecked", "r")
    # It hangs, and ends all the same.
    assert kztlab("down", "unchecked").returncode == 0


def test_a_store_without_the_check_is_caught(guest: Swapper, kztlab: Kztlab) -> None:
    log = kztlab.places.lab("unchecked") / "store" / "kztmemd.log"
    assert unchecked.WARNING in log.read_text()
    first = guest.client()["relay_counters"]["sessions"]
    with pytest.raises(VerificationError) as failed:
        guest.kill_agents(kills=4)
    # Not before one was killed.
    assert guest.client()["relay_counters"]["sessions"] > first
    print(failed.value)  # `pytest -rP` shows it
