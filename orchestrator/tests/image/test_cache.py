# SPDX-License-Identifier: GPL-2.0-or-later
"""Images are complete or absent, whatever happens to their builds.

The builds that fail here are real ones, of a recipe that unpacks next to nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab import programs
from kztlab.errors import BadInput, HostUnable
from kztlab.image import build, cache, ensure, list_images, remove
from kztlab.image.cache import PROGRAMS
from kztlab.image.recipe import recipe, recipes
from kztlab.locks import lock

if TYPE_CHECKING:
    from kztlab.places import Places

BUILD = """
import sys
from pathlib import Path
from kztlab.image import cache, ensure
from kztlab.image.recipe import recipes
from kztlab.places import Places
room, user = Path(sys.argv[1]), sys.argv[2] or None
cache.recipe = recipes(room / "images").__getitem__
ensure("tiny", Places(room / "state", room / "cache", room / "run", user), lambda *step: None)
"""


def quiet(_step: str, _seconds: float) -> None:
    pass


@pytest.fixture(autouse=True)
def tiny(room: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe `tiny`, and its script that runs when mmdebstrap has done its work."""
    folder = room / "images/tiny"
    shutil.copytree(recipe("debian-trixie").folder, folder)
    (folder / "recipe.toml").write_text(
        'name = "tiny"\nsuite = "trixie"\narchitecture = "amd64"\nvariant = "extract"\n'
        'packages = ["tzdata"]\nkernel = "none"\ninitrd_modules = []\n'
        'disk = "1G"\ncmdline = "quiet"\n'
    )
    for program in PROGRAMS:
        (room / program).write_bytes(b"program")
    monkeypatch.setenv("KZTLAB_GUEST_PROGRAMS", str(room))
    monkeypatch.setattr(cache, "recipe", recipes(room / "images").__getitem__)
    return folder / "pack"


def made_up(places: Places, digest: str) -> Path:
    """Something that the cache takes for an image."""
    folder = places.images / "tiny" / digest
    folder.mkdir(parents=True)
    (folder / "image.json").write_text('{"cmdline": "quiet"}')
    (folder / "disk.qcow2").write_bytes(b"disk")
    return folder


def current(room: Path) -> str:
    return recipes(room / "images")["tiny"].digest(*(room / program for program in PROGRAMS))


def left_behind(places: Places, room: Path) -> list[Path]:
    """What builds have in the cache and in the folder that they build in."""
    return [*(places.images / "tiny").iterdir(), *(room / "workshops").iterdir()]


def started(room: Path, places: Places) -> subprocess.Popen[bytes]:
    """A command that builds tiny, and has come to the script `pack`."""
    command = subprocess.Popen(
        [sys.executable, "-c", BUILD, room, places.user or ""],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    while not any(
        "reached" in log.read_text().splitlines() for log in room.glob("workshops/*/log")
    ):
        assert command.poll() is None, "the build has ended too early"
        time.sleep(0.05)
    return command


def test_a_killed_build_leaves_no_image_and_a_failed_one_nothing_at_all(
    tiny: Path, places: Places, room: Path
) -> None:
    tiny.write_text("#!/bin/sh\necho reached\nsleep 1000\n")
    command = started(room, places)
    command.kill()
    assert command.wait() == -signal.SIGKILL
    assert list_images(places) == []
    assert len(left_behind(places, room)) == 2
    (workshop,) = (room / "workshops").iterdir()
    with lock(workshop):  # all its processes have gone
        pass
    tiny.write_text("#!/bin/sh\necho so far and no further\nexit 1\n")
    with pytest.raises(HostUnable, match=r"(?s)making the root disk failed .*no further"):
        ensure("tiny", places, quiet)
    assert left_behind(places, room) == []


def test_an_interrupted_build_leaves_nothing(tiny: Path, places: Places, room: Path) -> None:
    tiny.write_text("#!/bin/sh\necho reached\nsleep 1000\n")
    command = started(room, places)
    command.send_signal(signal.SIGINT)
    assert command.wait() != 0
    assert left_behind(places, room) == []


def test_a_second_command_waits_for_the_first_ones_image(places: Places, room: Path) -> None:
    home = places.images / "tiny"
    home.mkdir(parents=True)
    steps: list[str] = []
    waiting = threading.Event()

    def progress(step: str, _seconds: float) -> None:
        steps.append(step)
        waiting.set()

    found: list[cache.Image] = []
    second = threading.Thread(target=lambda: found.append(ensure("tiny", places, progress)))
    with lock(home):
        second.start()
        assert waiting.wait(60)
        folder = made_up(places, current(room))
    second.join()
    assert steps == ["waiting for another command that builds this image"]
    assert [image.folder for image in found] == [folder]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_program_is_told(places: Places, room: Path, program: str) -> None:
    (room / program).unlink()
    with pytest.raises(HostUnable, match=rf"{program} has not been built.*\./dev"):
        ensure("tiny", places, quiet)


def test_all_missing_packages_are_told_at_once(
    places: Places, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(room))
    monkeypatch.setattr(programs, "DAEMONS", str(room))
    with pytest.raises(HostUnable) as caught:
        ensure("tiny", places, quiet)
    assert caught.value.hint == (
        "apt-get install --no-install-recommends "
        "mmdebstrap uidmap e2fsprogs qemu-utils util-linux zstd"
    )


def test_too_little_room_is_told_before_anything_starts(
    places: Places, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_ROOM_TO_BUILD", 1 << 60)
    with pytest.raises(HostUnable, match=rf"needs 1099511627776 MiB in {room}/workshops"):
        ensure("tiny", places, quiet)


def test_a_folder_for_builds_that_is_not_there_is_told(
    places: Places, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", f"{room}/nowhere")
    with pytest.raises(HostUnable, match=f"cannot build an image in {room}/nowhere"):
        ensure("tiny", places, quiet)


def test_images_are_listed_and_removed(places: Places, room: Path) -> None:
    old, new = made_up(places, "0123"), made_up(places, "4567")
    (places.images / "tiny/.unfinished-0").mkdir()
    assert {image.folder for image in list_images(places)} == {old, new}
    assert {image.folder for image in remove("tiny", places)} == {old, new}
    assert list_images(places) == []
    assert [path.name for path in left_behind(places, room)] == [".unfinished-0"]


def test_removing_what_is_not_there_is_an_error(places: Places) -> None:
    made_up(places, "0123")
    with pytest.raises(BadInput, match=r"no image other.*tiny"):
        remove("other", places)
    assert len(list_images(places)) == 1
