# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes and durations as people write them, and back.

Sizes are whole bytes with binary suffixes; the ambiguous ``M`` and ``MB`` are refused, because
half of all readers take them for 10^6. Durations are whole milliseconds, kept as seconds.
`format_size` and `format_duration` give text that parses to the same value.
"""

from __future__ import annotations

import re
from fractions import Fraction

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SIZES = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}
_MILLISECONDS = {"h": 3_600_000, "min": 60_000, "s": 1_000, "ms": 1}
_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")


class UnitError(ValueError):
    """Text that is no size or no duration; `hint` says how to write what was probably meant."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def parse_size(text: str) -> int:
    """Bytes of a text such as ``512MiB`` or ``1.5 GiB``."""
    number, unit = _split(text, "a size", "write it like 512MiB or 1GiB")
    if unit not in _SIZES:
        raise UnitError(f"{text!r} is not a size", _size_hint(number, unit))
    return _whole(text, number * _SIZES[unit], "bytes")


def format_size(size: int) -> str:
    """The shortest exact text for a size: 1 GiB is ``1GiB``, 1.5 GiB is ``1536MiB``."""
    unit = next(unit for unit, factor in _SIZES.items() if size % factor == 0 < size or factor == 1)
    return f"{size // _SIZES[unit]}{unit}"


def parse_duration(text: str) -> float:
    """Seconds of a text such as ``500ms``, ``10s``, ``1.5h``."""
    number, unit = _split(text, "a duration", "write it like 500ms, 10s, 5min or 1h")
    if unit not in _MILLISECONDS:
        raise UnitError(f"{text!r} is not a duration", _duration_hint(number, unit))
    return _whole(text, number * _MILLISECONDS[unit], "milliseconds") / 1000


def format_duration(seconds: float) -> str:
    """The shortest exact text for a duration of whole milliseconds."""
    total = round(seconds * 1000)
    unit = next(
        unit for unit, factor in _MILLISECONDS.items() if total % factor == 0 < total or factor == 1
    )
    return f"{total // _MILLISECONDS[unit]}{unit}" if total else "0s"


def _split(text: str, what: str, hint: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"{text!r} is not {what}", hint)
    return Fraction(match[1]), match[2]


def _whole(text: str, value: Fraction, units: str) -> int:
    if value.denominator != 1:
        raise UnitError(f"{text!r} is not a whole number of {units}", "use a smaller unit")
    return value.numerator


def _number(value: Fraction) -> str:
    return f"{float(value):.9g}" if value.denominator != 1 else str(value.numerator)


def _size_hint(number: Fraction, unit: str) -> str:
    """The binary unit that starts with the same letter is what was most likely meant."""
    for known in _SIZES:
        if unit and unit[0].upper() == known[0]:
            return f"sizes are binary: write {_number(number)}{known}"
    return f"add a unit: {_number(number)}MiB" if not unit else "units are B, KiB, MiB, GiB and TiB"


def _duration_hint(number: Fraction, unit: str) -> str:
    meant = {"": "s", "m": "min", "sec": "s", "hour": "h", "hours": "h", "minutes": "min"}.get(unit)
    return f"write {_number(number)}{meant}" if meant else "units are ms, s, min and h"
