# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed version, as its metadata has it."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version() -> str:
    """The version of the distribution, like `0.1.0`; read once, while its files can be."""
    return metadata.version("kztmem")
