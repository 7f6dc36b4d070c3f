# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kztlab.observe import Recorder, read_samples

if TYPE_CHECKING:
    from pathlib import Path


def test_each_sample_is_on_disk_at_once_with_both_clocks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "host.jsonl")
    before = time.monotonic(), time.time()
    recorder.write({"value": 1})
    (sample,) = read_samples(tmp_path / "host.jsonl")
    assert sample["value"] == 1
    assert sample["mono"] >= round(before[0], 3)
    assert sample["wall"] >= round(before[1], 3)
    recorder.close()


def test_a_gap_is_noted_once_until_there_are_samples_again(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    recorder = Recorder(path)
    for reason in ("away", "away", "worse"):
        recorder.gap(reason)
    recorder.write({})
    recorder.gap("away")
    recorder.close()
    assert [sample.get("gap") for sample in read_samples(path)] == ["away", "worse", None, "away"]


def test_a_closed_recorder_drops_what_comes_late(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    recorder = Recorder(path)
    recorder.close()
    recorder.write({"late": True})
    recorder.gap("late")
    assert read_samples(path) == []


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    path.write_bytes(b'{"mono":1.0,"a":1}\n{"mono":"x"}\n[]\n\xff\n{"mono":2.0}\n{"mono":3')
    assert [sample["mono"] for sample in read_samples(path)] == [1.0, 2.0]


def test_no_file_is_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "none.jsonl") == []
