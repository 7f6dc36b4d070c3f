# SPDX-License-Identifier: GPL-2.0-or-later
"""The types of values in a cluster.yaml: how each is read, written and described to editors.

Validators raise `PydanticCustomError` with an optional ``hint`` in its context; the loader prints
message and hint with the value's position.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from kztlab.spec.problem import suggest
from kztlab.spec.units import (
    UnitError,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME_PATTERN = "^[a-z][a-z0-9-]{0,30}$"

_IMAGE_PATTERN = "^[a-z0-9][a-z0-9._-]{0,62}$"
_DEDUP_PATTERN = r"^(off|client|domain:[!-~]{1,32})$"
_CODEC_PATTERN = r"^(none|lzo|lz4|zstd(:(-[1-7]|1?[0-9]))?)$"


def error(kind: str, message: str, hint: str | None = None) -> PydanticCustomError:
    """A validation error whose message is taken as it is: no templates, braces and all."""
    return PydanticCustomError(kind, "{message}", {"message": message, "hint": hint})


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UnitError as wrong:
        raise error("size", str(wrong), wrong.hint) from None


def _duration(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        raise error("duration", f"{value} has no unit", f"write {value}s, {value}min or {value}ms")
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except UnitError as wrong:
        raise error("duration", str(wrong), wrong.hint) from None


def sized(low: int, high: int, *, unit: int = 1) -> AfterValidator:
    """Sizes from `low` to `high` in whole multiples of `unit`, all in bytes."""

    def bounded(size: int) -> int:
        if size < low:
            raise error("size", f"{format_size(size)} is too small", f"at least {format_size(low)}")
        if size > high:
            raise error("size", f"{format_size(size)} is too large", f"at most {format_size(high)}")
        if size % unit:
            whole = format_size(-(-size // unit) * unit)
            message = f"{format_size(size)} is not a multiple of {format_size(unit)}"
            raise error("size", message, f"round it up to {whole}")
        return size

    return AfterValidator(bounded)


def lasting(low: float, high: float) -> AfterValidator:
    """Durations from `low` to `high` seconds."""

    def bounded(seconds: float) -> float:
        if not low <= seconds <= high:
            hint = f"from {format_duration(low)} to {format_duration(high)}"
            raise error("duration", f"{format_duration(seconds)} is out of range", hint)
        return seconds

    return AfterValidator(bounded)


def whole_seconds() -> AfterValidator:
    """Durations without a fraction of a second."""

    def whole(seconds: float) -> float:
        if seconds != int(seconds):
            raise error("duration", f"{format_duration(seconds)} is no number of whole seconds")
        return seconds

    return AfterValidator(whole)


def _choice(what: str, choices: Sequence[str]) -> BeforeValidator:
    def known(value: object) -> object:
        if not isinstance(value, str) or value in choices:
            return value
        raise error("choice", f"unknown {what} {value!r}", suggest(value, choices))

    return BeforeValidator(known)


def _matching(what: str, pattern: str, hint: str) -> Callable[[str], str]:
    expression = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def matches(text: str) -> str:
        if expression.fullmatch(text) is None:
            raise error("text", f"{text!r} is not {what}", hint)
        return text

    return matches


def _text(what: str, pattern: str, hint: str) -> tuple[AfterValidator, WithJsonSchema]:
    schema: dict[str, Any] = {"type": "string", "pattern": pattern}
    return AfterValidator(_matching(what, pattern, hint)), WithJsonSchema(schema)


Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "pattern": r"^[0-9]+(\.[0-9]+)? ?([KMGT]i)?B$",
            "minimum": 0,
            "title": "size",
        }
    ),
]
"""Bytes. Written ``512MiB``; a plain number is bytes."""

Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|min|h)$", "title": "duration"}
    ),
]
"""Seconds, in whole milliseconds. Written ``10s``, ``5min``."""

Name = Annotated[
    str,
    *_text(
        "a name",
        NAME_PATTERN,
        "a small letter, then up to 30 small letters, digits or hyphens",
    ),
]
Image = Annotated[
    str, *_text("an image name", _IMAGE_PATTERN, "small letters, digits, dots and hyphens")
]
Codec = Annotated[
    str,
    *_text(
        "a codec", _CODEC_PATTERN, "lzo, lz4, none, zstd or zstd:LEVEL with a level from -7 to 19"
    ),
]
Dedup = Annotated[
    str,
    *_text(
        "a way to deduplicate",
        _DEDUP_PATTERN,
        "off, client or domain:NAME with a name of up to 32 printable characters, no spaces",
    ),
]
AbsolutePath = Annotated[
    str, *_text("an absolute path", r"^/[^\x00-\x1f]*$", "it starts with a slash")
]
Frontend = Annotated[
    Literal["auto", "nbd", "relay", "vhost-user-blk", "tmem", "disk", "zram", "zswap", "none"],
    _choice(
        "frontend",
        ("auto", "nbd", "relay", "vhost-user-blk", "tmem", "disk", "zram", "zswap", "none"),
    ),
]
Persistent = Annotated[
    Literal["zsmalloc", "xvmalloc", "zbud"],
    _choice("allocator", ("zsmalloc", "xvmalloc", "zbud")),
]
Ephemeral = Annotated[
    Literal["zbud"],
    _choice("allocator of what may vanish", ("zbud",)),
]
Content = Annotated[
    Literal["real", "text", "zero", "random", "mixed"],
    _choice("content", ("real", "text", "zero", "random", "mixed")),
]
Access = Annotated[
    Literal["sequential", "random", "zipf"],
    _choice("access", ("sequential", "random", "zipf")),
]
