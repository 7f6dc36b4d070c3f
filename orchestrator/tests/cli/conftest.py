# SPDX-License-Identifier: GPL-2.0-or-later
"""The real command line, in a kztlab of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Kztlab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kztlab(tmp_path: Path) -> Kztlab:
    """Runs `kztlab` with arguments, in an empty folder."""
    environ = os.environ | {
        "KZTLAB_STATE": str(tmp_path / "state"),
        "KZTLAB_CACHE": str(tmp_path / "cache"),
        "KZTLAB_RUNTIME": str(tmp_path / "run"),
    }
    home = tmp_path / "home"
    home.mkdir()

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("kztlab"), *arguments],
            cwd=home,
            env=environ | extra,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
