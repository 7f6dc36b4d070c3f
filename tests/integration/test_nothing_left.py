# SPDX-License-Identifier: GPL-2.0-or-later
"""After `run`, and after `down --all`, nothing is left but the runs."""

from __future__ import annotations

import hashlib
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.conftest import Kztlab

from kztlab.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.guest

TEXT = """\
lab: {lab}
store: {{memory: 64MiB, codec: lz4}}
guests:
  n: {{memory: 128MiB, swap: 128MiB}}
  d: {{memory: 128MiB, swap: 128MiB, frontend: disk}}
  z: {{memory: 128MiB, swap: 128MiB, frontend: zram}}
workloads: [{{name: swaps, on: [n, d, z], command: "awk 'END {{exit NR != 2}}' /proc/swaps"}}]
"""


@pytest.fixture
def fresh(kztlab: Kztlab) -> Iterator[Kztlab]:
    """A kztlab that nobody shares."""
    with tempfile.TemporaryDirectory(prefix="kzt-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        shared = kztlab.places
        yield Kztlab(Places(home / "state", shared.cache, home / "run", shared.user), home)


def test_run_leaves_its_run_alone(fresh: Kztlab) -> None:
    result = fresh.json("run", fresh.spec("one", TEXT.format(lab="one")))
    assert [guest["frontend"] for guest in result["guests"]] == ["nbd", "disk", "zram"]
    assert all(guest["workloads"][0]["ok"] for guest in result["guests"])
    assert Path(result["report"]).is_file()
    assert fresh.leftovers() == []
    assert not list(Path("/dev/shm").glob(f"kztmem-*-{_arena(fresh, 'one')}"))
    assert fresh.labs() == []
    assert fresh.leftovers() == [], "looking for labs started something"


def test_an_interrupted_run_leaves_nothing_either(fresh: Kztlab) -> None:
    with fresh.start("run", fresh.spec("one", TEXT.format(lab="one"))) as run:
        run.until("store: serving")
        assert run.end(signal.SIGINT)[0] == 130
    assert fresh.leftovers() == []


def _arena(kztlab: Kztlab, lab: str) -> str:
    """The arena's name ends with a hash of the store's state folder."""
    state = kztlab.places.lab(lab) / "store"
    return hashlib.sha256(bytes(state.resolve())).hexdigest()[:8]
