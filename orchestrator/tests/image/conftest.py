# SPDX-License-Identifier: GPL-2.0-or-later
"""A cache and a place to build in, apart from the user's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab.places import SERVICE_USER, Places

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a build's user can reach, as pytest's own is closed; builds go there."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="kztlab-test-"))
    folder.chmod(0o711)
    workshops = folder / "workshops"
    workshops.mkdir(mode=0o777)
    workshops.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(workshops))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def places(room: Path) -> Places:
    user = SERVICE_USER if os.getuid() == 0 else None
    return Places(state=room / "state", cache=room / "cache", runtime=room / "run", user=user)
