# SPDX-License-Identifier: GPL-2.0-or-later
"""Specs as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.spec import SpecError, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def problems(tmp_path: Path) -> Callable[[str | bytes], list[str]]:
    """Loads a file of the given contents: its problems, one line each without the folder."""

    def problems(contents: str | bytes) -> list[str]:
        path = tmp_path / "cluster.yaml"
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        try:
            load(path)
        except SpecError as error:
            return str(error).replace(f"{tmp_path}/", "").splitlines()
        return []

    return problems
