# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest kernel's module makes and reads the frames that Rust and Python do."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.support import kernel, tmem_port
from tests.support.tmem_port import VECTORS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module's own code, for this machine."""
    return kernel.built("frames", tmp_path_factory.mktemp("frames"))


def run(frames: Path, vectors: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([frames, vectors], capture_output=True, text=True, check=False)


def test_the_module_has_the_vectors_bytes(frames: Path) -> None:
    """Those that it asks, of 64 pages and of runs of freed ones, and the replies to them."""
    done = run(frames, VECTORS)
    number = len(list(tmem_port.vectors()))
    assert (done.stdout, done.stderr) == (f"{number} vectors, 11 made, 10 taken\n", "")


@pytest.mark.parametrize(
    ("name", "offset", "complaint"),
    [
        ("put-two", 48, "the header is laid out otherwise"),
        ("put-two", 63, "the checksum is another one"),
        ("get-three-reply", 60, "the checksum is another one"),
        ("welcome", 61, "the checksum is another one"),
    ],
)
def test_vectors_with_another_byte_are_found_out(
    frames: Path, tmp_path: Path, name: str, offset: int, complaint: str
) -> None:
    changed = []
    for line in VECTORS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name} "):
            *words, head = line.split()
            wrong = bytearray.fromhex(head)
            wrong[offset] ^= 1
            changed.append(" ".join([*words, wrong.hex()]))
        else:
            changed.append(line)
    (tmp_path / "vectors").write_text("\n".join(changed) + "\n")
    done = run(frames, tmp_path / "vectors")
    assert done.returncode == 1
    assert f"{name}: {complaint}" in done.stderr
