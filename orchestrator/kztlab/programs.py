# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the host's programs are."""

from __future__ import annotations

import os
import shutil

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For a program that is to have nothing of its caller's."""

DAEMONS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons and mke2fs are, which an ordinary user's PATH often lacks."""


def search_path() -> str:
    """PATH, and after it the folders of daemons."""
    return f"{os.environ.get('PATH', os.defpath)}:{DAEMONS}"


def find(name: str, *more: str) -> str | None:
    """A program on the `search_path` or in one of these folders besides."""
    return shutil.which(name, path=os.pathsep.join((search_path(), *more)))
