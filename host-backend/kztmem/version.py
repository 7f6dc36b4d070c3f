# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed version, as its metadata has it."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of the distribution, like `0.1.0`."""
    return metadata.version("kztmem")
