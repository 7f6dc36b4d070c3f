# SPDX-License-Identifier: GPL-2.0-or-later
"""What is listed in two languages is the same in both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kztlab.observe import guest

REPORT = Path(__file__).parents[2] / "guest-agent" / "kzt-agent" / "src" / "report.rs"


@pytest.mark.parametrize(("name", "ours"), [("MEMINFO", guest._MEMINFO), ("VMSTAT", guest._VMSTAT)])
def test_the_agent_reports_what_the_sampler_takes(name: str, ours: tuple[str, ...]) -> None:
    found = re.search(rf"const {name}: \[&str; \d+\] = \[(.*?)\];", REPORT.read_text(), re.DOTALL)
    assert found is not None
    assert tuple(re.findall(r'"(\w+)"', found[1])) == ours
