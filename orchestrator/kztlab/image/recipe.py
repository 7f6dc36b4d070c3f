# SPDX-License-Identifier: GPL-2.0-or-later
"""What images are made from: the folders below images/ that hold a recipe.toml."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from kztlab.errors import BadInput

REPOSITORY = Path(__file__).resolve().parents[3]

FORMAT = 1
"""Raised when this package makes other images from the same recipe."""

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image's recipe.toml; the other files of its folder go into the image or build it."""

    name: str
    folder: Path
    suite: str
    architecture: str
    variant: str
    packages: tuple[str, ...]
    kernel: str
    initrd_modules: tuple[str, ...]
    disk: str
    cmdline: str

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def digest(self, *others: Path) -> str:
        """The cache key: the recipe's files and `others`, their names and modes. Nothing of time.

        Whoever changes anything that ends in the image gets another key.
        """
        key = hashlib.sha256(f"{FORMAT}\n".encode())
        named = [(str(path.relative_to(self.folder)), path) for path in self.files()]
        for name, path in [*named, *((path.name, path) for path in others)]:
            content = path.read_bytes()
            key.update(f"{name}\0{os.access(path, os.X_OK)}\0{len(content)}\0".encode())
            key.update(content)
        return key.hexdigest()[:_DIGITS]


def recipes(root: Path = REPOSITORY / "images") -> dict[str, Recipe]:
    """All recipes below `root` by the name of their image."""
    return {recipe.name: recipe for recipe in map(_read, sorted(root.glob("*/recipe.toml")))}


def recipe(name: str) -> Recipe:
    """The recipe of the image `name`; raises `BadInput`, naming those there are."""
    known = recipes()
    if name not in known:
        raise BadInput(f"there is no image {name!r}", hint=f"there are: {', '.join(known)}")
    return known[name]


def _read(path: Path) -> Recipe:
    text = tomllib.loads(path.read_text())
    return Recipe(
        folder=path.parent,
        packages=tuple(text.pop("packages")),
        initrd_modules=tuple(text.pop("initrd_modules")),
        **text,
    )
