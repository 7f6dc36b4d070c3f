# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with a cluster.yaml, and where."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kztlab.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of the file: ``("workloads", 0, "anon", "size")``."""

Position = tuple[int, int]
"""Line and column, both from 1; columns count characters."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with the value at a path, or with its key, wherever that came from."""

    path: KeyPath
    message: str
    hint: str | None = None
    at_key: bool = False


@dataclass(frozen=True)
class Problem:
    """A finding with its place in a file. One line of text."""

    file: str
    line: int
    column: int
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {key}{self.message}{hint}"


class SpecError(BadInput):
    """A spec that cannot be used; `problems` holds everything found, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda found: (found.file, found.line, found.column))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Origin:
    """Where the keys and values of a spec stand; the default is a spec made by a program."""

    file: str = "<spec>"
    keys: Mapping[KeyPath, Position] = field(default_factory=dict)
    values: Mapping[KeyPath, Position] = field(default_factory=dict)

    def problem(self, finding: Finding) -> Problem:
        """The finding at its position. What the file leaves to a default has the position of the
        key it would stand under."""
        line, column = self._position(finding.path, at_key=finding.at_key)
        key = format_path(finding.path)
        return Problem(self.file, line, column, key, finding.message, finding.hint)

    def _position(self, path: KeyPath, *, at_key: bool) -> Position:
        if path in self.values:
            return self.keys.get(path, self.values[path]) if at_key else self.values[path]
        return self._position(path[:-1], at_key=True) if path else (1, 1)


def format_path(path: KeyPath) -> str:
    """``workloads[0].anon.size``"""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is none of the known ones."""
    choices = list(known)
    close = difflib.get_close_matches(word.lower(), choices, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(choices)}" if choices else "there are none"
