# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kztlab.errors import HostUnable
from kztlab.places import SOCKET_PATH_MAX, Places


def _places(home: Path) -> Places:
    return Places(home / "state", home / "cache", home / "run", None)


def test_environment_moves_each_place(tmp_path: Path) -> None:
    names = ("KZTLAB_STATE", "KZTLAB_CACHE", "KZTLAB_RUNTIME")
    found = Places.default({name: str(tmp_path / name) for name in names})
    assert (found.state, found.cache, found.runtime) == tuple(tmp_path / name for name in names)


def test_empty_variable_counts_as_unset() -> None:
    assert Places.default({"KZTLAB_STATE": ""}) == Places.default({})


def test_user_without_xdg_runtime_folder_gets_one_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert Places.default({}).runtime == Path("/tmp/kztlab-4711")
    assert Places.default({"XDG_RUNTIME_DIR": "/x"}).runtime == Path("/x/kztlab")


def test_labs_of_one_name_in_two_states_have_different_sockets(tmp_path: Path) -> None:
    one, other = _places(tmp_path / "one"), _places(tmp_path / "other")
    assert one.lab_id("x") == one.lab_id("x")
    assert len({one.lab_id("x"), one.lab_id("y"), other.lab_id("x")}) == 3
    assert one.sockets("x") == tmp_path / "one/run" / one.lab_id("x")


def test_socket_path_is_checked_in_bytes(tmp_path: Path) -> None:
    room = SOCKET_PATH_MAX - len(bytes(tmp_path)) - 1
    fits = tmp_path / ("x" * room)
    assert Places.check_socket(fits) == fits
    with pytest.raises(HostUnable, match=f"at most {SOCKET_PATH_MAX}"):
        Places.check_socket(tmp_path / ("x" * (room + 1)))
    with pytest.raises(HostUnable):
        Places.check_socket(tmp_path / ("é" * room))


def test_folder_makes_what_is_missing_for_its_owner_alone(tmp_path: Path) -> None:
    made = _places(tmp_path).folder(tmp_path / "a/b/c")
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]
    assert _places(tmp_path).folder(made) == made


def test_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a/b"):
        with pytest.raises(HostUnable):
            _places(tmp_path).folder(path)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(HostUnable, match="belongs to another user"):
        _places(tmp_path).folder(theirs)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which has a service user")
def test_service_user_passes_roots_folders_and_changes_nothing_there(
    places: Places, tmp_path: Path
) -> None:
    made = places.folder(places.state / "some" / "where")
    assert places.check_reach(made / "file") == made / "file"
    for folder in (made, made.parent, places.state):
        assert folder.stat().st_uid == 0
        link = ["ln", "-s", "/etc/passwd", str(folder / "link")]
        assert subprocess.run(
            link, user=places.user, check=False, stderr=subprocess.DEVNULL
        ).returncode
    tmp_path.chmod(0o700)
    with pytest.raises(HostUnable, match=str(tmp_path)):
        places.check_reach(tmp_path / "file")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which has a service user")
def test_folders_change_hands(places: Places) -> None:
    theirs = places.service_folder(places.runtime / "sockets")
    assert (theirs.stat().st_uid, theirs.stat().st_mode & 0o777) == (places.account().pw_uid, 0o700)
    assert theirs.parent.stat().st_uid == 0
    ours = places.folder(theirs)
    assert (ours.stat().st_uid, ours.stat().st_mode & 0o777) == (0, 0o711)
    assert places.service_folder(ours).stat().st_uid == places.account().pw_uid
