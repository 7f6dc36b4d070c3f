# SPDX-License-Identifier: GPL-2.0-or-later
"""`up` on a lab that is up: guests are kept, workloads run again, failures are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.conftest import SHARED

if TYPE_CHECKING:
    from tests.integration.conftest import Up

pytestmark = pytest.mark.guest

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def test_running_guests_are_kept_and_the_workload_has_a_run_of_its_own(shared: Up) -> None:
    kztlab = shared.kztlab
    before = kztlab("exec", "a", BOOT_ID).stdout
    spec = shared.again("again", "workloads: [{name: hello, on: [a], command: echo hello}]\n")
    result = kztlab.json("up", spec)
    assert [work["name"] for work in result["guests"][0]["workloads"]] == ["hello"]
    assert result["run"] != shared.result["run"]
    assert Path(shared.result["run"]).exists()
    assert kztlab("exec", "a", BOOT_ID).stdout == before


def test_failures_and_timeouts_are_told_apart_and_nothing_runs_on(shared: Up) -> None:
    kztlab = shared.kztlab
    workloads = """\
workloads:
  - {name: bad, on: [a], command: "echo oops >&2; exit 5"}
  - {name: slow, on: [a], command: "sleep 987", timeout: 2s}
  - {name: unknown, on: [a], command: "no-such-program"}
  - {name: good, on: [a], command: "true"}
"""
    done = kztlab("up", shared.again("failing", workloads))
    assert done.returncode == 1
    assert "a: bad: the command ended with exit code 5: oops" in done.stderr
    assert "a: slow: ended after its timeout of 2s" in done.stderr
    assert "a: unknown: the command ended with exit code 127" in done.stderr
    assert "good" in done.stdout
    assert "a: good:" not in done.stderr.partition("kztlab: error:")[2]
    assert kztlab("exec", "a", "pgrep -f 'sleep 98[7]'").stdout == ""


@pytest.mark.parametrize("verb", ["up", "run"])
def test_a_lab_that_is_up_and_differs_has_to_go_down_first(shared: Up, verb: str) -> None:
    spec = shared.kztlab.spec("other", SHARED.replace("512MiB", "256MiB"))
    done = shared.kztlab(verb, spec)
    assert done.returncode == 2
    assert "kztlab down shared" in done.stderr
    assert shared.kztlab.json("status", "shared")["guests"][0]["state"] == "running"
