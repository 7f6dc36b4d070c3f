# SPDX-License-Identifier: GPL-2.0-or-later
"""Clean pages of files in the store: both loads of the example at once, and a file twice as large
as the guest's memory, read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import Swapper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400)]

EXAMPLE = Path(__file__).parents[2] / "examples/tmem.yaml"

SPEC = """\
lab: twice
store: {memory: 1GiB}
guests:
  waits: {frontend: tmem, memory: 192MiB, swap: 64MiB, tmem: {put_wait: true}}
  drops: {frontend: tmem, memory: 192MiB, swap: 64MiB}
"""
MIB = 384

# What was written is not put, what was read is. The kernel counts pgpgin in KiB.
PREPARE = f"head -c {MIB}M /dev/urandom >/root/file; sync; echo 3 >/proc/sys/vm/drop_caches"
READ = "md5sum </root/file"
PGPGIN = "sed -n 's/^pgpgin //p' /proc/vmstat"
CLEANCACHE = "/sys/kernel/mm/cleancache"


def test_both_loads_of_the_example_at_once(kztlab: Kztlab) -> None:
    result = kztlab.json("run", EXAMPLE)
    assert [guest["name"] for guest in result["guests"]] == ["web-1", "web-2", "db"]
    for guest in result["guests"]:
        fill, rewrite = guest["workloads"]
        assert (fill["ok"], fill["bad_pages"]) == (True, 0)
        assert (rewrite["ok"], rewrite["bad_pages"]) == (True, 0)
        assert rewrite["operations"] > 0
        assert min(guest["swapped_out_pages"], guest["swapped_in_pages"]) > 1000
        assert min(guest["cleancache"]["puts"], guest["cleancache"]["succ_gets"]) > 100
        print(guest)  # `pytest -rP` shows it


class Reader:
    """A guest that reads the same file again."""

    def __init__(self, guest: Swapper) -> None:
        self._guest = guest
        guest.run(PREPARE)

    def read(self) -> tuple[str, int]:
        """What is in the file, and how much of it came from the disk, in KiB."""
        before = self._count()
        content = self._guest.run(READ)
        disk, hits, misses = (now - then for now, then in zip(self._count(), before, strict=True))
        print(  # `pytest -rP` shows it
            f"pgpgin {disk} KiB, {hits} pages from the store, {misses} asked for in vain"
        )
        return content, disk

    def _count(self) -> tuple[int, ...]:
        files = f"cat {CLEANCACHE}/succ_gets {CLEANCACHE}/failed_gets"
        return tuple(map(int, self._guest.run(f"{PGPGIN}; {files}").split()))


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[Kztlab]:
    kztlab.json("up", kztlab.spec("twice", SPEC))
    yield kztlab
    assert kztlab("down", "twice").returncode == 0


def test_puts_that_wait_leave_nothing_to_read_from_the_disk(lab: Kztlab) -> None:
    reader = Reader(Swapper(lab, "twice", "waits"))
    first, cold = reader.read()
    again, warm = reader.read()
    assert cold >= MIB << 10
    # All but blocks that say where its data is, and what else the guest wants of its disk.
    assert warm < 2048
    assert again == first


def test_puts_that_are_dropped_are_read_from_the_disk_again(lab: Kztlab) -> None:
    reader = Reader(Swapper(lab, "twice", "drops"))
    first, cold = reader.read()
    again, warm = reader.read()
    assert cold >= MIB << 10
    assert warm < cold
    assert again == first
