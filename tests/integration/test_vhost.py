# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests swap three times their memory through queues that the store serves out of their memory."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.swapping import Swapper, number

from kztlab.errors import HostUnable
from kztlab.hypervisor import SWAP_SERIAL, Hypervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

SPEC = """\
lab: vhost
store: {memory: 768MiB}
guests:
  one: {frontend: vhost-user-blk, memory: 192MiB, swap: 1GiB}
  two: {frontend: vhost-user-blk, memory: 192MiB, swap: 1GiB, vcpus: 2}
workloads:
  - {name: fill, on: [one, two], anon: {size: 450MiB}}
"""
PAGES = (450 << 20) // 4096

KILLS = number("KZTLAB_KILLS", 4)
PAGES_BETWEEN = 1500
"""Pages that the store takes between two kills, so that all fall into the load."""
HANG_LIMIT = 5.0
"""Seconds from the store's death until it serves the guest's requests again."""

DISK = "/machine/peripheral/virtio-disk1/virtio-backend"
"""QEMU's name of the swap disk."""


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[dict[str, Any]]:
    """The lab is up and its load has run; what `up` has to say of it."""
    yield kztlab.json("up", kztlab.spec("vhost", SPEC))
    assert kztlab("down", "vhost").returncode == 0


def test_every_page_comes_back_right(lab: dict[str, Any]) -> None:
    for guest in lab["guests"]:
        assert guest["frontend"] == "vhost-user-blk"
        (load,) = guest["workloads"]
        assert (load["ok"], load["bad_pages"]) == (True, 0)
        assert min(guest["swapped_out_pages"], guest["swapped_in_pages"]) >= 0.3 * PAGES
        assert guest["stored_pages"] >= 0.3 * PAGES


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("guest", ["one", "two"])
def test_less_than_the_guests_memory_comes_back_right_too(kztlab: Kztlab, guest: str) -> None:
    report = Swapper(kztlab, "vhost", guest).load("160MiB", passes=2)
    assert min(report["pswpout"], report["pswpin"]) >= 0.1 * (160 << 20) / 4096


@pytest.mark.usefixtures("lab")
def test_the_disk_is_known_by_its_serial_number_and_has_a_queue_for_each_processor(
    kztlab: Kztlab,
) -> None:
    for guest, processors in (("one", 1), ("two", 2)):
        assert kztlab("exec", f"vhost/{guest}", "cat /sys/block/vdb/serial").stdout == SWAP_SERIAL
        queues = kztlab("exec", f"vhost/{guest}", "ls /sys/block/vdb/mq").stdout.split()
        assert queues == [str(number) for number in range(processors)]


class Queue:
    """The guest's first queue, as its own memory shows it: QEMU is asked, not the store."""

    def __init__(self, hypervisor: Hypervisor, guest: str) -> None:
        self._hypervisor, self._guest = hypervisor, guest
        places = self._ask("x-query-virtio-queue-status", path=DISK, queue=0)
        self._available, self._used = places["vring-avail"], places["vring-used"]

    def in_flight(self) -> int:
        """Requests that the guest has made and nobody has answered."""
        return (self._index(self._available) - self._index(self._used)) % (1 << 16)

    def _index(self, ring: int) -> int:
        line: str = self._ask("human-monitor-command", **{"command-line": f"xp /1hx {ring + 2}"})
        return int(line.rsplit(maxsplit=1)[-1], 16)

    def _ask(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401
        return self._hypervisor.qmp("vhost", self._guest, command, **arguments)


def served(kztlab: Kztlab, killed: set[int]) -> tuple[int, int]:
    """The serving process, if none of the killed ones, and the pages it has put and got for the
    guest `one`: counters begin anew with each process."""
    while True:
        with suppress(HostUnable), kztlab.store("vhost") as store:
            status = store.status()
            client = next(each for each in status["clients"] if each["name"] == "one")
            counters = client["counters"]
            if status["pid"] not in killed:
                return status["pid"], counters["puts"] + counters["gets"]
        time.sleep(0.01)


@pytest.mark.fault
@pytest.mark.usefixtures("lab")
def test_no_request_in_flight_is_lost_with_the_store(kztlab: Kztlab) -> None:
    killed: set[int] = set()
    in_flight, away = [], []
    with (
        Hypervisor.connect(kztlab.places) as hypervisor,
        Swapper(kztlab, "vhost", "one").loading("300MiB", passes=2) as load,
    ):
        queue = Queue(hypervisor, "one")
        for _ in range(KILLS):
            while (now := served(kztlab, killed))[1] < PAGES_BETWEEN:
                time.sleep(0.01)
            os.kill(now[0], signal.SIGSTOP)
            while (requests := queue.in_flight()) == 0:
                time.sleep(0.01)
            os.kill(now[0], signal.SIGKILL)
            begin = time.monotonic()
            killed.add(now[0])
            while served(kztlab, killed)[1] == 0:
                time.sleep(0.01)
            in_flight.append(requests)
            away.append(time.monotonic() - begin)
        load.report()
    print("requests in flight at each kill:", *in_flight)  # `pytest -rP` shows it
    print("seconds until served again:", *(f"{seconds:.2f}" for seconds in away))
    assert len(killed) == KILLS
    assert max(away) < HANG_LIMIT


THREE = """\
lab: three
guests:
  n: {frontend: nbd, memory: 128MiB, swap: 320MiB}
  r: {frontend: relay, memory: 128MiB, swap: 320MiB}
  v: {frontend: auto, memory: 128MiB, swap: 320MiB}
workloads:
  - {name: fill, on: [n, r, v], anon: {size: 160MiB}}
"""


def test_three_frontends_share_a_store_and_auto_is_one_of_them(kztlab: Kztlab) -> None:
    result = kztlab.json("run", kztlab.spec("three", THREE))
    assert [guest["frontend"] for guest in result["guests"]] == ["nbd", "relay", "vhost-user-blk"]
    for guest in result["guests"]:
        (load,) = guest["workloads"]
        assert (load["ok"], load["bad_pages"]) == (True, 0)
        assert guest["swapped_out_pages"] >= 0.3 * (160 << 20) / 4096


# The smallest that there is, for which stock kernels are too large (images/README.md).
EIGHT = """\
lab: eight
store: {memory: 384MiB}
guests:
  g: {count: 8, frontend: vhost-user-blk, memory: 64MiB, swap: 128MiB, image: debian-trixie-tmem}
workloads:
  - {name: fill, on: [g], anon: {size: 64MiB}}
"""


def test_eight_small_guests_share_a_store(kztlab: Kztlab) -> None:
    result = kztlab.json("run", kztlab.spec("eight", EIGHT))
    assert len(result["guests"]) == 8
    for guest in result["guests"]:
        (load,) = guest["workloads"]
        assert (load["ok"], load["bad_pages"]) == (True, 0)
        assert min(guest["swapped_out_pages"], guest["swapped_in_pages"]) >= 0.3 * (64 << 20) / 4096
