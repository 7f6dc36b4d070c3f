# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest kernel's module takes for pages that have been evicted before: its own code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support import kernel

RAM = 32768
"""Pages: a guest of 128 MiB."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernel.built("again", tmp_path_factory.mktemp("evicted"))


@pytest.mark.parametrize("files", [1, 8, 64, 4096, 32768])
def test_a_page_is_known_the_second_time(program: Path, files: int) -> None:
    """Of twice the guest's memory, in however many files."""
    pages = 2 * RAM
    command: list[str | Path] = [program, str(RAM), str(files), str(pages // files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, second, others = (int(line) / pages for line in done.stdout.split())
    print(first, second, others)
    assert second > 0.9
    assert max(first, others) < 0.05
