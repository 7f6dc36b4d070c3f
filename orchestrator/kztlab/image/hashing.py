# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of caches: of all that goes into what is cached, and nothing of time and place."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_DIGITS = 16


def digest(kind: str, files: Iterable[tuple[str, Path]]) -> str:
    """A key that changes with every file's name, mode and content."""
    key = hashlib.sha256(f"{kind}\n".encode())
    for name, path in files:
        content = path.read_bytes()
        key.update(f"{name}\0{os.access(path, os.X_OK)}\0{len(content)}\0".encode())
        key.update(content)
    return key.hexdigest()[:_DIGITS]
