# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest swaps 1.7 times its memory into the store: the project's main job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Up

pytestmark = pytest.mark.guest

PAGES = (272 << 20) // 4096


def test_every_page_comes_back_right(shared: Up) -> None:
    (guest,) = shared.result["guests"]
    assert guest["frontend"] == "nbd"
    (load,) = guest["workloads"]
    assert load["ok"]
    assert load["bad_pages"] == 0
    assert guest["swapped_out_pages"] >= 0.3 * PAGES
    assert guest["swapped_in_pages"] >= 0.3 * PAGES
    assert guest["stored_pages"] >= 0.3 * PAGES
    assert 0 < guest["stored_bytes"] < guest["stored_pages"] * 4096


def test_guest_and_store_count_the_same_pages(shared: Up) -> None:
    (guest,) = shared.summary["guests"]
    for way in ("out", "into"):
        counts = guest[way]
        assert abs(counts["store"] - counts["guest"]) <= 0.05 * counts["guest"], way


def test_the_run_directory_has_everything(shared: Up) -> None:
    run = Path(shared.result["run"])
    assert "size: 272MiB" in (run / "spec.yaml").read_text()
    for source in ("host", "store", "guest-a"):
        samples = (run / "samples" / f"{source}.jsonl").read_text().splitlines()
        assert len([line for line in samples if "gap" not in json.loads(line)]) >= 3, source
    assert "kztlab: [" in (run / "console" / "a.log").read_text()
    assert Path(shared.result["report"]).stat().st_size > 1 << 20  # with the plotting library
    suite = ET.parse(run / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    assert shared.summary["errors"] == shared.summary["warnings"] == []


def test_status_asks_libvirt_and_the_store(shared: Up) -> None:
    status = shared.kztlab.json("status", "shared")
    (guest,) = status["guests"]
    assert guest["state"] == "running"
    assert guest["stored_pages"] > 0
    assert status["store"]["codec"] == "lzo"
    assert status["store_error"] is None


def test_exec_passes_on_output_input_and_exit_code(shared: Up) -> None:
    kztlab = shared.kztlab
    done = kztlab("exec", "shared/a", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert kztlab("exec", "a", "echo $((6 * 7))").stdout == "42\n"
    assert kztlab("exec", "a", "--", "printf", "%s|", "a b", "$x", "'").stdout == "a b|$x|'|"
    told = json.loads(kztlab("exec", "--json", "a", "echo hi; exit 3").stdout)
    assert told == {"exit": 3, "stdout": "hi\n", "stderr": ""}


def test_the_guest_is_named_and_lets_only_its_lab_in(shared: Up) -> None:
    done = shared.kztlab("exec", "a", "--", "hostname")
    assert done.stdout == "a\n"
    port = shared.kztlab.json("status", "shared")["guests"][0]["ssh_port"]
    stranger = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    stranger += ["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentityFile=none", "-p", str(port)]
    done = subprocess.run(
        [*stranger, "root@127.0.0.1", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr
