# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files that are either the old or the new one, whatever happens in between."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from kztmem.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_json(path: Path) -> dict[str, object] | None:
    """The object in a file written by `write_json`; None if there is no file.

    Raises `HostUnable` for anything else: to guess here would mean to lose pages.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostUnable(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(data, dict):
        raise damaged(path, "not an object")
    return data


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Replaces a file: written aside, synced, renamed, and the rename synced.

    Raises `HostUnable` and leaves the old file alone when there is no room.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        hint = "make room on that file system; nothing was changed"
        raise HostUnable(f"cannot write {path}: {error.strerror}", hint=hint) from error


def sync_directory(path: Path) -> None:
    """Makes what was renamed in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damaged(path: Path, what: str) -> HostUnable:
    """The error for a file that this program cannot have written."""
    return HostUnable(
        f"{path} is damaged: {what}",
        hint="put a backup in its place, or start anew: --remove, then delete it",
    )
