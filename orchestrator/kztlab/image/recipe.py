# SPDX-License-Identifier: GPL-2.0-or-later
"""What images are made from: the folders below images/ that hold a recipe.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from kztlab.errors import BadInput
from kztlab.image.hashing import digest
from kztlab.image.linux import Linux, read_linux

REPOSITORY = Path(__file__).resolve().parents[3]

FORMAT = 1
"""Raised when this package makes other images from the same recipe."""


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
    base: Path | None = None
    """The folder of a recipe that this one is like; it says where not."""
    linux: Linux | None = None
    """The kernel, if it is built from source (the keys `linux` and `patched`); `kernel` is a
    package's name otherwise."""

    def sources(self) -> list[tuple[str, Path]]:
        """The files that go into the image or build it, by their names; the base's come first."""
        folders = [self.base, self.folder] if self.base else [self.folder]
        return [
            (str(path.relative_to(folder)), path)
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def files(self) -> list[Path]:
        return [path for _, path in self.sources()]

    def digest(self, *others: Path) -> str:
        """The cache key: the recipe's files and `others`, their names and modes. Nothing of time.

        Whoever changes anything that ends in the image gets another key.
        """
        kind = f"{FORMAT} {self.linux.digest()}" if self.linux else f"{FORMAT}"
        return digest(kind, [*self.sources(), *((path.name, path) for path in others)])


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
    base = path.parents[1] / text.pop("base") if "base" in text else None
    if base:
        text = tomllib.loads((base / "recipe.toml").read_text()) | text
    linux = None
    if "linux" in text:
        folder = path.parents[1] / text.pop("linux")
        linux = read_linux(folder, patched=text.pop("patched", True))
    return Recipe(
        folder=path.parent,
        base=base,
        linux=linux,
        packages=tuple(text.pop("packages")),
        initrd_modules=tuple(text.pop("initrd_modules")),
        **text,
    )
