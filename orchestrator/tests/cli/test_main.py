# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit codes and messages, without any guest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab import cli
from kztlab.cli import ls

if TYPE_CHECKING:
    import argparse

    from tests.cli.conftest import Kztlab

GOOD = "lab: good\nguests: {web: {memory: 128MiB, swap: 256MiB}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the command runs."""
    return tmp_path / "home"


def test_help_names_every_verb_and_exit_code(kztlab: Kztlab) -> None:
    done = kztlab("--help")
    assert done.returncode == 0
    for verb in cli.VERBS:
        assert re.search(rf"^    {verb} ", done.stdout, re.MULTILINE)
    assert "3 guest lost" in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_explains_itself(kztlab: Kztlab, verb: str) -> None:
    done = kztlab(verb, "--help")
    assert done.returncode == 0
    assert f"usage: kztlab {verb}" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["fly"], ["up"], ["ls", "--fly"], ["--js", "ls"]])
def test_what_is_no_command_is_bad_input(kztlab: Kztlab, arguments: list[str]) -> None:
    done = kztlab(*arguments)
    assert done.returncode == 2
    assert "usage: kztlab" in done.stderr


@pytest.mark.parametrize("verb", ["up", "run", "check"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lab: a\nguests: {web: {}}\nstroe: {}\n", "c.yaml:3:1: stroe: unknown key"),
        ("lab: a\nlab: b\nguests: {web: {}}\n", "c.yaml:2:1: lab:"),
        ("lab: a\nguests: {web: {memory: lots}}\n", "c.yaml:2:24: guests.web.memory:"),
        ("lab: a\nguests: {web: {frontend: tape}}\n", "c.yaml:2:26: guests.web.frontend:"),
        ("lab: a\nguests: {web: {memory: 15TiB}}\n", "c.yaml:2:24: guests.web.memory:"),
        ("lab: a\nguests: {web: {swap: 1TiB}}\n", "c.yaml:1:1: store.memory:"),
        ("", "c.yaml:1:1: "),
        (None, "c.yaml:1:1: no such file"),
    ],
)
def test_a_bad_file_is_told_by_position_and_nothing_is_started(
    kztlab: Kztlab, home: Path, verb: str, text: str | None, said: str
) -> None:
    if text is not None:
        (home / "c.yaml").write_text(text)
    done = kztlab(verb, "c.yaml")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert not (home.parent / "state" / "labs").exists()
    assert not (home.parent / "run").exists()


def test_check_passes_a_good_file(kztlab: Kztlab, home: Path) -> None:
    (home / "c.yaml").write_text(GOOD)
    done = kztlab("check", "c.yaml")
    assert (done.returncode, done.stdout) == (0, "c.yaml: fine: lab good, 1 guest\n")


def test_check_tells_programs_every_problem(kztlab: Kztlab, home: Path) -> None:
    (home / "c.yaml").write_text("lab: a\nguests: {web: {vcpus: many, memroy: 1GiB}}\n")
    done = kztlab("check", "c.yaml", "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert {problem["key"] for problem in found["problems"]} == {
        "guests.web.vcpus",
        "guests.web.memroy",
    }
    assert all(problem["line"] == 2 for problem in found["problems"])


def test_init_writes_what_check_passes_and_never_over_a_file(kztlab: Kztlab, home: Path) -> None:
    assert kztlab("init").returncode == 0
    assert kztlab("check", "cluster.yaml").returncode == 0
    before = (home / "cluster.yaml").read_bytes()
    again = kztlab("init")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (home / "cluster.yaml").read_bytes() == before


def test_init_that_cannot_write_is_the_hosts_fault(kztlab: Kztlab) -> None:
    done = kztlab("init", "no/such/folder.yaml")
    assert done.returncode == 4
    assert "cannot write no/such/folder.yaml" in done.stderr


def test_schema_is_json(kztlab: Kztlab) -> None:
    schema = json.loads(kztlab("schema").stdout)
    assert {"lab", "guests", "store", "workloads"} <= schema["properties"].keys()


def test_doctor_tells_programs_and_people_the_same(kztlab: Kztlab) -> None:
    told = kztlab("doctor", "--json")
    found = json.loads(told.stdout)
    assert found["ok"] == all(each["ok"] for each in found["requirements"])
    shown = kztlab("doctor")
    assert told.returncode == shown.returncode == (0 if found["ok"] else 4)
    for each in found["requirements"]:
        assert each["name"] in shown.stdout


def test_doctor_gives_the_remedy(kztlab: Kztlab) -> None:
    done = kztlab("doctor", PATH="/nonexistent")
    if done.returncode == 0:
        pytest.skip("every program is in a folder for daemons here")
    assert done.returncode == 4
    assert "apt-get install" in done.stdout


def test_a_host_that_lacks_something_is_told_so_by_up(kztlab: Kztlab, home: Path) -> None:
    (home / "c.yaml").write_text(GOOD)
    done = kztlab("up", "c.yaml", PATH="/nonexistent")
    assert done.returncode == 4
    assert "this host lacks" in done.stderr
    assert "apt-get install" in done.stderr
    assert not (home.parent / "state" / "labs").exists()


def test_without_labs_there_is_nothing_to_list_or_to_take_down(kztlab: Kztlab, home: Path) -> None:
    assert json.loads(kztlab("ls", "--json").stdout) == {"labs": []}
    assert json.loads(kztlab("down", "--all", "--json").stdout) == {"down": []}
    assert not list((home.parent / "run").rglob("*.sock"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "no lab is up"),
        (["status", "nosuch"], "there is no lab nosuch"),
        (["ssh", "nosuch"], "there is no guest nosuch"),
        (["exec", "nosuch", "--", "ls"], "there is no guest nosuch"),
        (["exec", "nosuch"], "say which command"),
        (["logs", "a/b"], "there is no guest a/b"),
        (["report"], "there is no finished run"),
        (["report", "nosuch"], "no finished run of the lab nosuch"),
        (["report", "."], "is not a run directory"),
        (["down"], "say which labs"),
        (["down", "x", "--all"], "say which labs"),
        (["down", "UPPER"], "not a lab's name"),
        (["image", "rm", "nosuch"], "the cache has no image nosuch"),
    ],
)
def test_what_is_not_there_is_bad_input(kztlab: Kztlab, arguments: list[str], said: str) -> None:
    done = kztlab(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("kztlab: error: ")
    assert "Traceback" not in done.stderr


def test_a_labs_runs_are_not_those_of_one_whose_name_goes_on(
    kztlab: Kztlab, tmp_path: Path
) -> None:
    run = tmp_path / "state" / "runs" / "web-2-20261124-070713"
    run.mkdir(parents=True)
    (run / "spec.yaml").write_text(GOOD)
    (run / "summary.json").write_text("{}")
    assert "no finished run of the lab web" in kztlab("report", "web").stderr
    assert "is not a summary of this version" in kztlab("report", "web-2").stderr


def test_a_bug_is_kept_for_its_finder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def wrong(_args: argparse.Namespace) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setenv("KZTLAB_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(ls, "run", wrong)
    assert cli.main(["ls"]) == cli.BUG
    said = capsys.readouterr().err
    assert "a bug in kztlab: ZeroDivisionError: oh" in said
    assert "Traceback" not in said
    (kept,) = (tmp_path / "state").glob("traceback-*.txt")
    assert str(kept) in said
    assert "ZeroDivisionError: oh" in kept.read_text()


def test_a_disk_that_is_full_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(_args: argparse.Namespace) -> int:
        return Path("/dev/full").write_text("something", encoding="utf-8")

    monkeypatch.setattr(ls, "run", write)
    assert cli.main(["ls"]) == 4
    said = capsys.readouterr().err
    assert said.startswith("kztlab: error: cannot write a file: No space left on device\n")
    assert "make room" in said


def test_debug_shows_the_traceback(kztlab: Kztlab) -> None:
    done = kztlab("status", "nosuch", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_bench_is_the_stores_own(kztlab: Kztlab, home: Path) -> None:
    (home / "pages").write_bytes(b"page" * 4096)
    done = kztlab("bench", "store", "pages", "--json", "--repetitions", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["engine"] for row in rows[:3]] == ["raw", "store", "store"]
    done = kztlab("bench", "store", "nowhere")
    assert done.returncode == 2
    assert done.stderr == "kztmemd: error: FILE: 'nowhere' does not exist\n"
