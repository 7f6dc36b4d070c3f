# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab's SSH keys, as OpenSSH sees them."""

from __future__ import annotations

import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from kztlab.lab.keys import Keys

if TYPE_CHECKING:
    from pathlib import Path


def test_openssh_reads_them(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: install openssh-client")
    keys = Keys.of(tmp_path / "keys")
    for path, half in ((keys.client, keys.authorized_key), (keys.host, keys.host_key)):
        derived = subprocess.run(
            ["ssh-keygen", "-y", "-f", path], check=True, capture_output=True, text=True
        ).stdout
        assert derived.split()[:2] == half.split()[:2]
        assert half.startswith("ssh-ed25519 ")


def test_they_are_private_and_kept(tmp_path: Path) -> None:
    keys = Keys.of(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE(keys.client.stat().st_mode) == 0o600
    before = keys.client.read_bytes(), keys.host.read_bytes()
    assert before[0] != before[1]
    again = Keys.of(tmp_path / "keys")
    assert (again.client.read_bytes(), again.host.read_bytes()) == before


def test_a_half_written_pair_is_made_anew(tmp_path: Path) -> None:
    keys = Keys.of(tmp_path / "keys")
    old = keys.authorized_key
    keys.client.with_name("client.pub").unlink()
    assert Keys.of(tmp_path / "keys").authorized_key != old
