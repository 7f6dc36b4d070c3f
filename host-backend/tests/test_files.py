# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import os
from pathlib import Path

import pytest

from kztmem.errors import HostUnable
from kztmem.files import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1', b"null"])
def test_a_damaged_file_is_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clients.json"
    path.write_bytes(content)
    with pytest.raises(HostUnable, match="is damaged"):
        read_json(path)


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clients.json"
    write_json(path, {"a": 1})

    def no_room(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(HostUnable, match="No space left on device"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".clients.json.new").symlink_to(victim)
    with pytest.raises(HostUnable):
        write_json(tmp_path / "clients.json", {})
    assert victim.read_text() == "precious"
