# SPDX-License-Identifier: GPL-2.0-or-later
"""A kztlab of a test's own, without any guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.places import Places

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def empty(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "cache", tmp_path / "run", None)
