# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.spec import HostFacts, check, init_text, load
from kztlab.spec.units import GIB, MIB

if TYPE_CHECKING:
    from pathlib import Path

ROOMY = HostFacts(memory_available=64 * GIB, shm_free=64 * GIB)


def problems(tmp_path: Path, contents: str, host: HostFacts = ROOMY) -> list[str]:
    path = tmp_path / "cluster.yaml"
    path.write_text(contents, encoding="utf-8")
    found = check(load(path), host)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in found]


def test_the_example_fits_a_small_host(tmp_path: Path) -> None:
    host = HostFacts(memory_available=3 * GIB // 2, shm_free=256 * MIB)
    assert problems(tmp_path, init_text(), host) == []
    assert load(tmp_path / "cluster.yaml").lab == "quickstart"


def test_guests_beyond_the_hosts_memory_are_named_where_it_runs_out(tmp_path: Path) -> None:
    contents = (
        "lab: q\nstore: {memory: 512MiB, overcommit: true}\n"
        "guests:\n  a: {memory: 192MiB}\n  b: {memory: 1GiB, count: 2}\n  c: {}\n"
    )
    host = HostFacts(memory_available=3 * GIB, shm_free=GIB)
    assert problems(tmp_path, contents, host) == [
        (
            "cluster.yaml:5:15: guests.b.memory: the guests up to here need 3520MiB of host memory"
            " (store: 512MiB), 3072MiB are available (reduce memory or count)"
        )
    ]


def test_a_guest_that_takes_its_memory_from_the_defaults_is_named_by_its_key(
    tmp_path: Path,
) -> None:
    host = HostFacts(memory_available=128 * MIB, shm_free=GIB)
    assert problems(tmp_path, "lab: q\nguests:\n  a: {frontend: disk}\n", host) == [
        (
            "cluster.yaml:3:3: guests.a.memory: the guests up to here need 448MiB of host memory,"
            " 128MiB are available (reduce memory or count)"
        )
    ]


def test_a_store_beyond_dev_shm(tmp_path: Path) -> None:
    host = HostFacts(memory_available=8 * GIB, shm_free=64 * MIB)
    contents = "lab: q\nstore:\n  memory: 400MiB\nguests: {a: {}}\n"
    assert problems(tmp_path, contents, host) == [
        (
            "cluster.yaml:3:11: store.memory: 400MiB do not fit /dev/shm, which has 64MiB free"
            " (reduce it or enlarge /dev/shm)"
        )
    ]
    without = "lab: q\nstore: {memory: 400MiB}\nguests: {a: {frontend: zram}}\n"
    assert problems(tmp_path, without, host) == []


def test_swap_devices_beyond_the_store(tmp_path: Path) -> None:
    guests = "guests:\n  a: {count: 3}\n  b: {frontend: disk, swap: 64GiB}\n"
    assert problems(tmp_path, f"lab: q\nstore: {{memory: 512MiB}}\n{guests}") == [
        (
            "cluster.yaml:2:17: store.memory: the guests' swap devices hold 3072MiB, the store"
            " about 1536MiB (512MiB at ratio 3)"
            " (1GiB would do, or store.spill, or smaller swap, or store.overcommit: true)"
        )
    ]
    assert problems(tmp_path, f"lab: q\nstore: {{memory: 512MiB, spill: 1GiB}}\n{guests}") == [
        (
            "cluster.yaml:2:17: store.memory: the guests' swap devices hold 3072MiB, the store"
            " about 2560MiB (512MiB at ratio 3 and 1GiB of disk)"
            " (683MiB would do, or smaller swap, or store.overcommit: true)"
        )
    ]
    for enough in (
        "memory: 1GiB",
        "memory: 512MiB, spill: 1536MiB",
        "ratio: 6",
        "overcommit: true",
        "socket: /run/kztmem/api.sock",
    ):
        assert problems(tmp_path, f"lab: q\nstore: {{{enough}}}\n{guests}") == []


def test_reservations_beyond_the_store(tmp_path: Path) -> None:
    def of(store: str, reservation: str, frontend: str = "relay") -> str:
        return (
            f"lab: q\nstore: {{{store}, overcommit: true}}\nguests:\n  a: {{reservation: 100MiB}}\n"
            f"  b: {{frontend: disk, reservation: 1GiB}}\n"
            f"  c:\n    count: 2\n    frontend: {frontend}\n    reservation: {reservation}\n"
            f"  d: {{}}\n"
        )

    assert problems(tmp_path, of("memory: 256MiB", "64MiB")) == [
        (
            "cluster.yaml:9:18: guests.c.reservation: the guests up to here reserve 228MiB, of the"
            " store's 256MiB 227MiB can be reserved (reduce it, or enlarge store.memory)"
        )
    ]
    assert problems(tmp_path, of("memory: 256MiB", "63MiB")) == []
    assert problems(tmp_path, of("memory: 256MiB", "64MiB", "zram")) == []
    assert problems(tmp_path, of("socket: /run/kztmem/api.sock", "1GiB")) == []


def test_the_facts_of_this_host() -> None:
    facts = HostFacts.read()
    assert facts.memory_available > 0
    assert facts.shm_free >= 0
