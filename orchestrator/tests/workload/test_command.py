# SPDX-License-Identifier: GPL-2.0-or-later
"""The script that runs a workload, run by a real shell in a folder that plays the control group."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kztlab.spec import AnonSpec, FilesSpec, WorkloadSpec
from kztlab.workload import command


def run(tmp_path: Path, workload: WorkloadSpec) -> subprocess.CompletedProcess[str]:
    group = tmp_path / "it's a group"
    folder = group / workload.name
    folder.mkdir(parents=True)
    (folder / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    # A folder of root's own is not there for everybody who runs the tests.
    script = command.start(workload, str(group)).replace("cd /root\n", "cd /\n")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (folder / "cgroup.kill").read_text() == "1\n"
    assert (folder / "cgroup.procs").read_text() == "0\n"
    return done


def test_a_command_is_run_by_a_shell_and_keeps_its_exit_status(tmp_path: Path) -> None:
    workload = WorkloadSpec(name="nap", on=["a"], command='echo "it\'s $((6 * 7))"; exit 3')
    done = run(tmp_path, workload)
    assert (done.returncode, done.stdout) == (3, "it's 42\n")


def test_a_group_that_is_not_there_fails_before_the_command(tmp_path: Path) -> None:
    workload = WorkloadSpec(name="nap", on=["a"], command="echo ran")
    script = command.start(workload, str(tmp_path / "none"))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""


def test_every_setting_of_anon_is_an_option() -> None:
    spec = AnonSpec(
        size=300 << 20,
        content="real",
        passes=7,
        access="zipf",
        seed=9,
        corpus="/usr/share",
    )
    assert command.anon(spec) == [
        "kzt-load",
        "anon",
        "--size=314572800",
        "--content=real",
        "--passes=7",
        "--access=zipf",
        "--seed=9",
        "--corpus=/usr/share",
        "--json",
    ]


def test_every_setting_of_files_is_an_option() -> None:
    spec = FilesSpec(size=64 << 20, files=5, processes=3, duration=30.0, seed=9)
    workload = WorkloadSpec(name="rewrite", on=["a"], files=spec)
    assert command.start(workload, "/g").splitlines()[-1] == (
        "exec kzt-load files --folder=rewrite --size=67108864 --files=5 --processes=3"
        " --seconds=30 --seed=9 --json"
    )


def test_a_corpus_with_odd_characters_is_one_word() -> None:
    spec = AnonSpec(size=1 << 20, corpus="/a b'$(c)")
    workload = WorkloadSpec(name="fill", on=["a"], anon=spec)
    last = command.start(workload, "/g").splitlines()[-1]
    words = subprocess.run(
        ["sh", "-c", last.replace("exec kzt-load", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == command.anon(spec)[1:]
