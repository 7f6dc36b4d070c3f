# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that swaps over the relay is shut down; one without an agent is brought up."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import Swapper

from kztlab.lab import processes

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

pytestmark = pytest.mark.guest

SPEC = """\
lab: life
guests:
  r: {frontend: relay, memory: 160MiB, swap: 512MiB}
"""


def test_swap_is_empty_before_the_agent_ends(kztlab: Kztlab) -> None:
    kztlab.json("up", kztlab.spec("life", SPEC))
    guest = Swapper(kztlab, "life", "r")
    console = kztlab.places.lab("life") / "guests" / "r" / "console.log"
    with guest.loading("256MiB", passes=1000) as load:
        guest.wait(load, 20_000)
        guest.run("poweroff")
        while "r" in processes.guests(kztlab.places, "life"):
            time.sleep(0.2)
    said = console.read_text(errors="replace")
    assert "kztlab: going down" in said
    assert "kztlab: swap is still on" not in said
    assert "Power down" in said
    assert kztlab("down", "life").returncode == 0


def without_agent(cache: Path, image: Path) -> None:
    """A cache whose image is like this one but has no kzt-agent."""
    folder = cache / "images" / image.parent.name / image.name
    shutil.copytree(image, folder)
    disk, raw = folder / "disk.qcow2", folder / "disk.raw"
    new = folder / "disk.new"
    convert = "qemu-img convert -O"
    for command in (
        f"{convert} raw {disk} {raw}",
        f"debugfs -w -R 'rm /usr/bin/kzt-agent' {raw}",
        f"{convert} qcow2 {raw} {new}",
    ):
        subprocess.run(shlex.split(command), check=True, capture_output=True)
    raw.unlink()
    new.rename(disk)


def test_an_image_without_the_agent_is_told(
    kztlab: Kztlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = kztlab.json("image", "build", "debian-trixie")
    cache = kztlab.home / "cache"
    without_agent(cache, Path(image["folder"]))
    monkeypatch.setenv("KZTLAB_CACHE", str(cache))
    done = kztlab("up", kztlab.spec("life", SPEC))
    assert done.returncode != 0
    assert "this image has no kzt-agent, which the frontend relay needs" in done.stderr
    assert kztlab("down", "life").returncode == 0
