# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache key: everything that goes into an image, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput
from kztlab.image.recipe import Recipe, recipe, recipes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def copied(tmp_path: Path) -> Recipe:
    original = recipe("debian-trixie")
    shutil.copytree(original.folder, tmp_path / "images/copy")
    (tmp_path / "load").write_bytes(b"program")
    return dataclasses.replace(original, folder=tmp_path / "images/copy")


def _append(path: Path) -> None:
    with path.open("a") as file:
        file.write("\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda images: _append(images / "copy/pack"),
    "mode": lambda images: (images / "copy/pack").chmod(0o644),
    "name": lambda images: (images / "copy/pack").rename(images / "copy/pick"),
    "new file": lambda images: (images / "copy/rootfs/etc/motd").write_text(""),
    "program": lambda images: _append(images.parent / "load"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_gives_another_key(copied: Recipe, tmp_path: Path, change: str) -> None:
    before = copied.digest(tmp_path / "load")
    CHANGES[change](tmp_path / "images")
    assert copied.digest(tmp_path / "load") != before


def test_neither_place_nor_time_count(copied: Recipe, tmp_path: Path) -> None:
    for path in copied.files():
        os.utime(path, (0, 0))
    original = recipe("debian-trixie")
    assert copied.digest(tmp_path / "load") == original.digest(tmp_path / "load")


def test_an_unknown_image_is_told_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"no image 'debian-buzz' .*debian-trixie"):
        recipe("debian-buzz")


def test_recipes_are_found_by_the_name_they_give(copied: Recipe) -> None:
    assert recipes(copied.folder.parent) == {"debian-trixie": copied}
