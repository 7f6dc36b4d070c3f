# SPDX-License-Identifier: GPL-2.0-or-later
"""A YAML file as plain values, each with its line and column.

Stricter than YAML where YAML surprises: keys are text and stand once, `on` and `yes` are words
(YAML 1.2), numbers are decimal, and there are no tags and no merge keys. Aliases are allowed within
limits, so that a file of a few lines cannot unfold into gigabytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from kztlab.spec.problem import Finding, KeyPath, Origin, Position, Problem, SpecError, suggest

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 << 10
MAX_VALUES = 20_000
MAX_DEPTH = 20
MAX_ALIASES = 100

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?[0-9]{1,30}\.[0-9]{0,30}")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass
class Source:
    """What a file says. `problems` are those that leave the rest of it readable."""

    data: object
    origin: Origin
    problems: list[Problem]


def read(path: Path) -> Source:
    """Reads a YAML file; raises `SpecError` when it cannot be made sense of as YAML."""
    file = str(path)
    text = _decode(file, _read_bytes(path))
    try:
        root = _Composer(text).get_single_node()
    except yaml.YAMLError as wrong:
        raise SpecError([_syntax_problem(file, text, wrong)]) from None
    if root is None:
        raise SpecError([Problem(file, 1, 1, "", "the file is empty", _EXAMPLE)])
    return _Reading(file).source(root)


_EXAMPLE = "`kztlab init` writes an example"


def _read_bytes(path: Path) -> bytes:
    file = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError([Problem(file, 1, 1, "", "no such file", _nearby(path))]) from None
    except (OSError, ValueError) as wrong:
        reason = getattr(wrong, "strerror", None) or str(wrong)
        raise SpecError([Problem(file, 1, 1, "", f"cannot be read: {reason}")]) from None
    if len(raw) > MAX_BYTES:
        message = f"the file is larger than {MAX_BYTES >> 10}KiB"
        raise SpecError([Problem(file, 1, 1, "", message, "is this a cluster.yaml?")])
    return raw


def _nearby(path: Path) -> str:
    try:
        others = [
            other.name for other in path.parent.iterdir() if other.suffix in {".yaml", ".yml"}
        ]
    except OSError:
        others = []
    return suggest(path.name, others) if others else _EXAMPLE


def _decode(file: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        before = raw[: wrong.start].decode("utf-8-sig")
        line, column = _position_after(before)
        message = f"byte 0x{raw[wrong.start]:02x} is not UTF-8"
        raise SpecError([Problem(file, line, column, "", message, "save it as UTF-8")]) from None


def _position_after(before: str) -> Position:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _syntax_problem(file: str, text: str, wrong: yaml.YAMLError) -> Problem:
    if isinstance(wrong, _Refused):
        return Problem(file, *_position(wrong.mark), "", wrong.message, wrong.hint)
    if isinstance(wrong, yaml.reader.ReaderError):
        line, column = _position_after(text[: wrong.position])
        message = f"character U+{ord(text[wrong.position]):04X} is not allowed in YAML"
        return Problem(file, line, column, "", message, "remove it")
    if not isinstance(wrong, yaml.MarkedYAMLError):
        return Problem(file, 1, 1, "", f"not YAML: {wrong}")
    mark = wrong.problem_mark or wrong.context_mark
    problem = (wrong.problem or "cannot be parsed").removeprefix("but ")
    line, column = (1, 1) if mark is None else _position(mark)
    if "'\\t'" in problem:
        return Problem(file, line, column, "", "a tab cannot indent", "use spaces")
    if "expected a single document" in (wrong.context or ""):
        return Problem(file, line, column, "", "a second document starts here", "keep one")
    return Problem(file, line, column, "", f"not YAML: {problem}", wrong.context)


def _position(mark: yaml.Mark) -> Position:
    return mark.line + 1, mark.column + 1


class _Refused(yaml.YAMLError):
    def __init__(self, mark: yaml.Mark, message: str, hint: str) -> None:
        super().__init__(message)
        self.mark, self.message, self.hint = mark, message, hint


class _Composer(yaml.BaseLoader):
    """PyYAML's composer within limits; it recurses, so its depth must be bounded here."""

    def __init__(self, text: str) -> None:
        self._depth = 0
        self._aliases = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: yaml.Mark = event.start_mark
        tag = getattr(event, "tag", None)
        if self._depth == MAX_DEPTH:
            raise _Refused(mark, "nested too deeply", f"at most {MAX_DEPTH} levels")
        if tag is not None:
            raise _Refused(mark, f"tags such as {tag!r} are not used here", "remove it")
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise _Refused(mark, "too many aliases", f"at most {MAX_ALIASES} in a file")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


@dataclass
class _Reading:
    """One walk over the node tree of a file."""

    file: str
    keys: dict[KeyPath, Position] = field(default_factory=dict)
    values: dict[KeyPath, Position] = field(default_factory=dict)
    findings: list[tuple[Position, Finding]] = field(default_factory=list)

    def source(self, root: yaml.Node) -> Source:
        data = self._value(root, ())
        problems = [
            Origin(self.file, {}, {found.path: position}).problem(found)
            for position, found in self.findings
        ]
        return Source(data, Origin(self.file, self.keys, self.values), problems)

    def _value(self, node: yaml.Node, path: KeyPath) -> object:
        # An alias is its anchor's node once more, possibly inside itself: the same limits again.
        if len(path) > MAX_DEPTH:
            raise self._unfolds(node, "an alias contains itself, or nesting is too deep")
        if len(self.values) >= MAX_VALUES:
            raise self._unfolds(node, f"more than {MAX_VALUES} values, aliases unfolded")
        self.values[path] = _position(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node.value, plain=getattr(node, "style", None) is None)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            position = _position(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(position, path, "a key must be a word", "is there a stray '?' or '{'?")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key == "<<" and key_node.style is None:
                self._note(position, here, "merge keys are not supported", "repeat the keys")
            elif key in mapping:
                line = self.keys[here][0]
                self._note(position, here, "duplicate key", f"the first one is in line {line}")
            else:
                self.keys[here] = position
                mapping[key] = self._value(value_node, here)
        return mapping

    def _note(self, position: Position, path: KeyPath, message: str, hint: str) -> None:
        self.findings.append((position, Finding(path, message, hint)))

    def _unfolds(self, node: yaml.Node, message: str) -> SpecError:
        line, column = _position(node.start_mark)
        return SpecError([Problem(self.file, line, column, "", message, "write it out plainly")])


def _scalar(text: str, *, plain: bool) -> object:
    if not plain:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
