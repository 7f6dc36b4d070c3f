# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cluster.yaml asks of a lab that is down, up, or up and different."""

from __future__ import annotations

from pathlib import Path

import pytest

from kztlab.errors import BadInput, HostUnable
from kztlab.lab.plan import Options, plan
from kztlab.lab.record import LabRecord
from kztlab.places import Places
from kztlab.spec import Cluster, load

SPEC = Path("/somewhere/cluster.yaml")
PLACES = Places(Path("/s"), Path("/c"), Path("/r"), None)


def cluster(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load(path)


def planned(tmp_path: Path, text: str, up: LabRecord | None = None) -> LabRecord:
    return plan(PLACES, SPEC, cluster(tmp_path, text), Options(), up)


def test_a_fresh_lab_has_every_guest_and_a_store_of_its_own(tmp_path: Path) -> None:
    lab = planned(
        tmp_path, "lab: a\nguests: {web: {}, app: {frontend: relay}, db: {frontend: disk}}\n"
    )
    assert {name: guest.client for name, guest in lab.guests.items()} == {
        "web": "web",
        "app": "app",
        "db": None,
    }
    assert all(guest.phase == "planned" for guest in lab.guests.values())
    assert lab.store is not None
    assert lab.store.socket == PLACES.sockets("a") / "api.sock"


def test_a_lab_without_swap_into_a_store_has_none(tmp_path: Path) -> None:
    assert planned(tmp_path, "lab: a\nguests: {web: {frontend: zram}}\n").store is None


def test_in_a_joined_store_the_lab_names_its_clients(tmp_path: Path) -> None:
    lab = planned(tmp_path, "lab: a\nstore: {socket: /run/kzt.sock}\nguests: {web: {}}\n")
    assert lab.store is not None
    assert lab.store.socket == Path("/run/kzt.sock")
    assert lab.guests["web"].client == f"web-{PLACES.lab_id('a')}"


def test_in_a_joined_store_no_two_guests_have_one_name(tmp_path: Path) -> None:
    others = Places(Path("/other"), Path("/c"), Path("/r"), None)
    names = [
        plan(places, SPEC, cluster(tmp_path, text), Options(), None).guests[guest].client
        for places in (PLACES, others)
        for lab, guest in (("a", "b-c"), ("a-b", "c"))
        for text in [f"lab: {lab}\nstore: {{socket: /run/kzt.sock}}\nguests: {{{guest}: {{}}}}\n"]
    ]
    assert len(set(names)) == 4


def test_a_client_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    name = "a" * 23
    text = f"lab: a\nstore: {{socket: /run/kzt.sock}}\nguests: {{{name}: {{}}}}\n"
    with pytest.raises(BadInput, match="over 31 characters"):
        planned(tmp_path, text)


def test_a_socket_path_that_is_too_long_is_refused_before_anything_starts(tmp_path: Path) -> None:
    deep = Places(Path("/s"), Path("/c"), Path("/r" * 40), None)
    with pytest.raises(HostUnable, match="at most 107"):
        plan(deep, SPEC, cluster(tmp_path, "lab: a\nguests: {web: {}}\n"), Options(), None)


def test_what_is_up_is_kept_and_what_is_missing_added(tmp_path: Path) -> None:
    up = planned(tmp_path, "lab: a\nguests: {web: {frontend: none}}\n")
    up.guests["web"].phase = "ready"
    text = "lab: a\nguests: {web: {frontend: none}, db: {}}\ncollect: {interval: 2s}\n"
    lab = planned(tmp_path, text, up)
    assert lab.guests["web"].phase == "ready"
    assert lab.guests["db"].phase == "planned"
    assert lab.store is not None
    assert lab.cluster.collect.interval == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("guests: {web: {memory: 256MiB}}", "guests.web.memory is 192MiB, not 256MiB"),
        ("guests: {web: {swap: 2GiB}}\nstore: {memory: 1GiB}", "guests.web.swap is 1GiB, not 2GiB"),
        ("guests: {web: {cap: 64MiB}}", "guests.web.cap is None, not 64MiB"),
        ("guests: {db: {}}", "it has no guest web"),
        ("guests: {web: {}}\nstore: {codec: lz4}", "store.codec is lzo, not lz4"),
    ],
)
def test_a_change_to_what_is_up_asks_for_down_first(tmp_path: Path, change: str, said: str) -> None:
    up = planned(tmp_path, "lab: a\nguests: {web: {}}\n")
    with pytest.raises(BadInput) as caught:
        planned(tmp_path, f"lab: a\n{change}\n", up)
    assert said in caught.value.message
    assert caught.value.hint == "take it down first: kztlab down a"


def test_a_larger_count_adds_guests(tmp_path: Path) -> None:
    up = planned(tmp_path, "lab: a\nguests: {web: {count: 2}}\n")
    lab = planned(tmp_path, "lab: a\nguests: {web: {count: 3}}\nstore: {overcommit: false}\n", up)
    assert list(lab.guests) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(uri="qemu:///system"), "at qemu:///session, not qemu:///system"),
        (Options(accel="kvm"), "on tcg, not kvm"),
    ],
)
def test_other_options_than_a_lab_is_up_with_ask_for_down_first(
    tmp_path: Path, options: Options, said: str
) -> None:
    spec = cluster(tmp_path, "lab: a\nguests: {web: {}}\n")
    up = plan(PLACES, SPEC, spec, Options(uri="qemu:///session"), None)
    up.accel = "tcg"
    with pytest.raises(BadInput) as caught:
        plan(PLACES, SPEC, spec, options, up)
    assert said in caught.value.message
    same = plan(PLACES, SPEC, spec, Options("tcg", "qemu:///session"), up)
    assert (same.accel, same.uri) == ("tcg", "qemu:///session")
