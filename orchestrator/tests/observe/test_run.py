# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput
from kztlab.observe import RunDirectory
from kztlab.observe.run import MAX_CONSOLE
from kztlab.spec import Cluster, GuestSpec

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = Cluster(lab="q", guests={"a": GuestSpec(), "b": GuestSpec()})


def test_a_run_keeps_its_spec(run: RunDirectory) -> None:
    assert RunDirectory.open(run.path).cluster() == CLUSTER


def test_a_run_is_never_written_over(run: RunDirectory) -> None:
    with pytest.raises(FileExistsError):
        RunDirectory.create(run.path, CLUSTER)


def test_another_directory_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_samples_are_found_by_source(run: RunDirectory) -> None:
    for source in ("host", "guest-b", "guest-a"):
        recorder = run.recorder(source)
        recorder.write({"of": source})
        recorder.close()
    assert run.guests() == ["a", "b"]
    assert [sample["of"] for sample in run.samples("guest-a")] == ["guest-a"]
    assert run.samples("store") == []


def test_the_end_of_a_console_is_kept(run: RunDirectory, tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"start" + b"." * MAX_CONSOLE + b"panic")
    run.keep_console("a", log)
    run.keep_console("b", tmp_path / "never-written.log")
    kept = run.console("a").read_bytes()
    assert len(kept) == MAX_CONSOLE
    assert kept.endswith(b"panic")
    assert not run.console("b").exists()


def test_a_file_is_written_whole_or_not_at_all(run: RunDirectory) -> None:
    run.write("summary.json", "old")
    with pytest.raises(UnicodeEncodeError):
        run.write("summary.json", "new \ud800")
    assert run.summary.read_text(encoding="utf-8") == "old"
