# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that does not keep a port's sessions apart fails where agents are killed.

`test_relay.py` has the same load and kills, and the store as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import Swapper, VerificationError

import kztmem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BUILD = "cargo build --locked --release -p kzt-py --features no-session-check"
SPEC = """\
lab: unchecked
guests:
  r: {frontend: relay, memory: 192MiB, swap: 1GiB}
"""


def build() -> Path:
    """The store's core without the check. The next build of the sound one takes its place."""
    if shutil.which("cargo") is None:
        pytest.skip("no cargo on the PATH")
    done = subprocess.run(
        [*BUILD.split(), "--message-format=json-render-diagnostics"],
        cwd=ROOT,
        env=os.environ | {"PYO3_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    messages = map(json.loads, done.stdout.splitlines())
    (core,) = (
        Path(message["filenames"][0])
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "_core"
    )
    return core


@pytest.fixture
def guest(kztlab: Kztlab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Swapper]:
    """A guest of such a store."""
    package = kztlab.home / "unchecked" / "kztmem"
    sources = shutil.ignore_patterns("_core.*.so", "__pycache__")
    shutil.copytree(Path(kztmem.__file__).parent, package, ignore=sources)
    shutil.copy(build(), package / "_core.abi3.so")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    kztlab.json("up", kztlab.spec("unchecked", SPEC))
    yield Swapper(kztlab, "unchecked", "r")
    # It hangs, and ends all the same.
    assert kztlab("down", "unchecked").returncode == 0


def test_a_store_without_the_check_is_caught(guest: Swapper, kztlab: Kztlab) -> None:
    log = kztlab.places.lab("unchecked") / "store" / "kztmemd.log"
    assert "does not keep a port's sessions apart" in log.read_text()
    first = guest.client()["relay_counters"]["sessions"]
    with pytest.raises(VerificationError) as failed:
        guest.kill_agents(kills=4)
    # Not before one was killed.
    assert guest.client()["relay_counters"]["sessions"] > first
    print(failed.value)  # `pytest -rP` shows it
