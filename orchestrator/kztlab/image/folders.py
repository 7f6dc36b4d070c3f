# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders of a cache, which are complete or not there at all."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.locks import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.image.runner import Progress

_UNFINISHED = ".unfinished-"


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A folder to fill, that is named `final` when that went well and removed when not.

    Whoever calls holds the lock of the folder around it (`alone`): what others have left there,
    killed, is removed as well.
    """
    for stale in final.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(stale)
    with ExitStack() as undo:
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=final.parent))
        undo.callback(shutil.rmtree, unfinished)
        yield unfinished
        for path in unfinished.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o444)
        unfinished.chmod(0o755)
        unfinished.rename(final)
        undo.pop_all()


def vanish(folder: Path) -> None:
    """Remove a folder, at once for all who look for it."""
    hidden = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)  # the next build does, if it comes first


def alone(home: Path, progress: Progress, what: str) -> ExitStack:
    """Hold the lock of a folder, saying so if it takes until another command has finished."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(home, wait=False))
        except BlockingIOError:
            progress(f"waiting for another command that builds this {what}", 0.0)
            stack.enter_context(lock(home))
        return stack.pop_all()
