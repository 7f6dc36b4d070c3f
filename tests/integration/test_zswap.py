# SPDX-License-Identifier: GPL-2.0-or-later
"""The baseline zswap: a guest that compresses into its own memory before it writes to a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400)]

SPEC = """\
lab: compressing
guests:
  z: {frontend: zswap, memory: 160MiB, swap: 512MiB}
workloads:
  - {name: fill, on: [z], anon: {size: 160MiB, content: text}}
"""
PAGES = (160 << 20) // 4096

TAKEN = "grep -w zswpout /proc/vmstat"


def test_pages_go_to_zswap_and_are_counted(kztlab: Kztlab) -> None:
    (found,) = kztlab.json("up", kztlab.spec("compressing", SPEC))["guests"]
    taken = kztlab("exec", "compressing/z", TAKEN)
    assert kztlab("down", "compressing").returncode == 0
    (load,) = found["workloads"]
    assert (load["ok"], load["bad_pages"]) == (True, 0)
    assert min(found["swapped_out_pages"], found["swapped_in_pages"]) >= 0.2 * PAGES
    assert int(taken.stdout.split()[1]) >= 0.1 * PAGES
