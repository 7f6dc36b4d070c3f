# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them: a number of bytes, or a number with a binary unit."""

from __future__ import annotations

import re

from kztmem.errors import BadInput

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))? ?([A-Za-z]*)", re.ASCII)
_EXAMPLE = "write it like 512MiB: a number with B, KiB, MiB, GiB or TiB"

MAX_SIZE = (1 << 63) - 1
"""The largest size that is understood; file offsets end there too."""


def parse_size(text: str | int, *, key: str) -> int:
    """Returns a size in bytes; `key` names what it is for in errors.

    Raises `BadInput` for anything but a whole, positive number of bytes. Decimal units are refused
    instead of guessed: 5 % of a store is too much to be wrong by.
    """
    if isinstance(text, bool):
        raise BadInput(f"{text} is not a size", key=key, hint=_EXAMPLE)
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"{text!r} is not a size", key=key, hint=_EXAMPLE)
        whole, fraction, unit = match.groups()
        factor = _UNITS.get(unit or "B")
        if factor is None:
            raise BadInput(f"{text!r} has an unknown unit", key=key, hint=_suggestion(unit))
        scaled = int(whole + (fraction or "")) * factor
        size, rest = divmod(scaled, 10 ** len(fraction or ""))
        if rest:
            raise BadInput(f"{text!r} is not a whole number of bytes", key=key, hint=_EXAMPLE)
    if not 0 < size <= MAX_SIZE:
        raise BadInput(f"{text!r} is out of range", key=key, hint=_EXAMPLE)
    return size


def _suggestion(unit: str) -> str:
    for known in _UNITS:
        if unit[:1].upper() == known[0] and known != "B":
            return f"did you mean {known}? Units are binary"
    return _EXAMPLE


def format_size(size: int) -> str:
    """A size for messages: exact with the largest unit that divides it, else one decimal."""
    for name, factor in reversed(_UNITS.items()):
        if size >= factor:
            exact = size % factor == 0
            return f"{size // factor}{name}" if exact else f"{size / factor:.1f}{name}"
    return f"{size}B"
