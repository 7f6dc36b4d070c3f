# SPDX-License-Identifier: GPL-2.0-or-later
"""./dev itself, as far as it goes without installing anything."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    # From elsewhere: the checkout is found by the script's own place.
    return subprocess.run(
        [ROOT / "dev", *arguments], cwd="/", capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_help_lists_every_verb(arguments: list[str]) -> None:
    done = dev(*arguments)
    verbs = re.findall(r"^([a-z]+)\)$", (ROOT / "dev").read_text(), re.MULTILINE)
    assert done.returncode == 0
    assert set(verbs) == set(re.findall(r"^  ([a-z]+) ", done.stdout, re.MULTILINE))


def test_an_unknown_verb_is_bad_input() -> None:
    done = dev("frobnicate")
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert not done.stdout
