# SPDX-License-Identifier: GPL-2.0-or-later
"""The state on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from kztlab.errors import BadInput, HostUnable
from kztlab.lab import record, target
from kztlab.lab.plan import Options, plan
from kztlab.lab.record import LabRecord
from kztlab.places import Places
from kztlab.spec import load

EVERYTHING = """\
lab: a
store: {memory: 300MiB, codec: "zstd:3", ratio: 4.5}
guests:
  web: {count: 2, memory: 160MiB, swap: 257MiB, workload_memory_max: 100MiB, boot_timeout: 1500ms}
workloads:
  - {name: fill, on: [web], anon: {size: 200MiB}, stagger: 5s}
  - {name: nap, on: [web-1], command: "sleep 1 'ü'"}
"""


@pytest.fixture
def lab(empty: Places, tmp_path: Path) -> LabRecord:
    path = tmp_path / "cluster.yaml"
    path.write_text(EVERYTHING)
    empty.folder(empty.lab("a"))
    return plan(empty, path, load(path), Options(), None)


def test_what_is_saved_is_found_again(empty: Places, lab: LabRecord) -> None:
    lab.guests["web-1"].phase = "booting"
    lab.save(empty)
    assert record.find(empty, "a") == lab
    assert record.get(empty, "a").cluster == lab.cluster
    assert record.names(empty) == ["a"]


def test_a_failed_save_leaves_the_old_record(empty: Places, lab: LabRecord) -> None:
    lab.save(empty)
    (empty.lab("a") / "lab.new").mkdir()
    lab.accel = "kvm"
    with pytest.raises(HostUnable, match="cannot write"):
        lab.save(empty)
    assert record.get(empty, "a").accel is None


def test_an_unknown_lab_is_told_with_the_known_ones(empty: Places, lab: LabRecord) -> None:
    lab.save(empty)
    assert record.find(empty, "b") is None
    with pytest.raises(BadInput, match="there is no lab b") as caught:
        record.get(empty, "b")
    assert caught.value.hint == "there is: a"


@pytest.mark.parametrize("content", ["", "{", '{"lab": "a"}', '{"version": 2}', "null"])
def test_a_damaged_record_names_its_file_and_the_way_out(empty: Places, content: str) -> None:
    path = empty.folder(empty.lab("a")) / "lab.json"
    path.write_text(content)
    with pytest.raises(HostUnable, match=str(path)) as caught:
        record.find(empty, "a")
    assert "kztlab down a" in (caught.value.hint or "")


def test_a_damaged_record_hides_no_other_labs_guests(empty: Places, lab: LabRecord) -> None:
    lab.save(empty)
    (empty.folder(empty.lab("b")) / "lab.json").write_text("{")
    assert target.resolve(empty, "a/web-1").guest == lab.guests["web-1"]


def test_only_folders_that_a_lab_can_have_made_are_labs(empty: Places, lab: LabRecord) -> None:
    lab.save(empty)
    (empty.labs / "lost+found").mkdir()
    assert record.names(empty) == ["a"]


def test_a_state_folder_that_is_none_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = Places(tmp_path / "file", tmp_path / "cache", tmp_path / "run", None)
    with pytest.raises(HostUnable, match="Not a directory"):
        record.names(places)
    with pytest.raises(HostUnable, match="Not a directory"):
        places.folder(places.lab("a"))


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "a/b", "a" * 32, "a\n"])
def test_what_is_no_name_never_becomes_a_path(empty: Places, name: str) -> None:
    with pytest.raises(BadInput, match="not a lab's name"):
        record.find(empty, name)
