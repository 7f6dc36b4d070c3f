# SPDX-License-Identifier: GPL-2.0-or-later
"""From a file to a `Cluster`, or to a list of everything that is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from kztlab.spec.consistency import InconsistentError, contradictions
from kztlab.spec.model import Cluster, GuestSpec, Section, WorkloadSpec
from kztlab.spec.problem import Finding, KeyPath, SpecError, suggest
from kztlab.spec.source import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic_core import ErrorDetails

_SectionT = TypeVar("_SectionT", bound=Section)


def load(path: Path) -> Cluster:
    """The cluster a file describes; raises `SpecError` with all its problems."""
    source = read(path)
    cluster = None
    findings: list[Finding] = []
    try:
        cluster = Cluster.model_validate(source.data, context=source.origin)
    except ValidationError as invalid:
        for details in invalid.errors(include_url=False):
            findings.extend(_findings(details))
        if not any(isinstance(_cause(details), InconsistentError) for details in invalid.errors()):
            findings.extend(contradictions(*_sound_parts(source.data)))
    problems = source.problems + [source.origin.problem(found) for found in findings]
    if cluster is None or problems:
        raise SpecError(problems)
    return cluster


def dump(cluster: Cluster) -> str:
    """The cluster as YAML with every default written out; loads to an equal cluster."""
    data = cluster.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _sound_parts(
    data: object,
) -> tuple[dict[str, GuestSpec | None], dict[int, WorkloadSpec]]:
    """The guests and workloads that are valid by themselves, in a file that is not as a whole."""
    top = data if isinstance(data, dict) else {}
    guests = top.get("guests")
    workloads = top.get("workloads")
    sound_guests = {
        name: _valid(GuestSpec, value)
        for name, value in (guests.items() if isinstance(guests, dict) else ())
    }
    sound_workloads = {
        index: workload
        for index, value in enumerate(workloads if isinstance(workloads, list) else ())
        if (workload := _valid(WorkloadSpec, value)) is not None
    }
    return sound_guests, sound_workloads


def _valid(model: type[_SectionT], value: object) -> _SectionT | None:
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


def _cause(details: ErrorDetails) -> object:
    return details.get("ctx", {}).get("error")


def _findings(details: ErrorDetails) -> Iterator[Finding]:
    """What a validation error says, in the words of the file."""
    cause = _cause(details)
    if isinstance(cause, InconsistentError):
        yield from cause.findings
        return
    path: KeyPath = details["loc"]
    at_key = bool(path) and path[-1] == "[key]"
    if at_key:
        path = path[:-1]
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    expected = _EXPECTED.get(kind)
    if kind == "extra_forbidden":
        yield _unknown_key(path)
    elif kind == "missing":
        yield Finding(path, "is missing", "this key has no default")
    elif kind in {"greater_than_equal", "less_than_equal", "less_than"}:
        bound, limit = next(iter(context.items()))
        wrong = "small" if bound == "ge" else "large"
        relation = {"ge": "at least", "le": "at most", "lt": "less than"}[bound]
        yield Finding(path, f"{value} is too {wrong}", f"{relation} {limit}")
    elif kind in {"too_short", "string_too_short"}:
        yield Finding(path, "is empty", "at least one is needed")
    elif expected is not None:
        yield Finding(path, f"must be {expected}, not {_described(value)}", _type_hint(kind, value))
    else:
        yield Finding(path, details["msg"], context.get("hint"), at_key)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "literal_error": "text",
}


def _type_hint(kind: str, value: object) -> str | None:
    if kind == "list_type" and isinstance(value, str):
        return f"write [{value}]"
    if kind == "string_type" and isinstance(value, int | float | bool):
        return "put it in quotes"
    if value is None and kind == "model_type":
        return "write {} for all defaults"
    if value is None:
        return "nothing is written after the colon; give a value or remove the key"
    return None


def _described(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return repr(value) if len(value) <= 40 else f"{value[:40]!r}…"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _unknown_key(path: KeyPath) -> Finding:
    section = _section(path[:-1])
    key = str(path[-1])
    return Finding(path, "unknown key", suggest(key, section.model_fields), at_key=True)


def _section(path: KeyPath) -> type[Section]:
    """The model of the mapping at a path."""
    section: type[Section] = Cluster
    for part in path:
        if isinstance(part, str) and part in section.model_fields:
            section = _model_in(section.model_fields[part].annotation) or section
    return section


def _model_in(annotation: Any) -> type[Section] | None:  # noqa: ANN401 -- annotations are any object
    """The section an annotation holds, as in `dict[Name, GuestSpec]` or `AnonSpec | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)
