# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads all that a serving process will ever import, before it is forked or gives up root."""

from __future__ import annotations

import importlib
from typing import Final

MODULES: Final = (
    "kztmem.web",
    "kztmem.service",
    # What libraries and asyncio load only when they first need it:
    "concurrent.futures.thread",
    "encodings.idna",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.h11_impl",
)


def load() -> None:
    """Imports everything."""
    for module in MODULES:
        importlib.import_module(module)
