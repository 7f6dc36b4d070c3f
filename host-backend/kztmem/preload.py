# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads all that a serving process will ever import, before it is forked or gives up root."""

from __future__ import annotations

import codecs
import importlib
from typing import Final

from kztmem.version import version

_MODULES: Final = (
    "kztmem.web",
    "kztmem.service",
    # What asyncio and uvicorn load only when they first need it:
    "concurrent.futures.thread",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.h11_impl",
)
_ENCODINGS: Final = ("ascii", "idna", "latin-1")


def load() -> None:
    """Imports everything."""
    for module in _MODULES:
        importlib.import_module(module)
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    # Pydantic loads parts of itself when it first makes a schema.
    from kztmem.schemas import schemas  # noqa: PLC0415

    schemas()
    version()
