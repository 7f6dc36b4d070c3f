# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that does not keep the sessions of ports apart, for tests that have to notice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kztmem

ROOT = Path(__file__).parents[2]
BUILD = "cargo build --locked --release -p kzt-py --features no-session-check"

WARNING = "does not keep a port's sessions apart"
"""What such a store says of itself in its log."""


def package(folder: Path) -> Path:
    """A folder for PYTHONPATH, whose kztmem is such a store."""
    target = folder / "unchecked" / "kztmem"
    if not target.exists():
        sources = shutil.ignore_patterns("_core.*.so", "__pycache__")
        core = _build()
        shutil.copytree(Path(kztmem.__file__).parent, target, ignore=sources)
        shutil.copy(core, target / "_core.abi3.so")
    return target.parent


def _build() -> Path:
    """The store's core without the check. The next build of the sound one takes its place."""
    if shutil.which("cargo") is None:
        pytest.skip("no cargo on the PATH")
    done = subprocess.run(
        [*BUILD.split(), "--message-format=json-render-diagnostics"],
        cwd=ROOT,
        env=os.environ | {"PYO3_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    messages = map(json.loads, done.stdout.splitlines())
    (core,) = (
        Path(message["filenames"][0])
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "_core"
    )
    return core
