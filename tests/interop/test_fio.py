# SPDX-License-Identifier: GPL-2.0-or-later
"""fio's nbd engine, which verifies what it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.interop.conftest import Device, Run

pytestmark = pytest.mark.interop


@pytest.mark.parametrize(
    ("pattern", "block"),
    [("randwrite", "4k"), ("write", "128k"), ("randwrite", "512-9k")],
    ids=["random pages", "sequential", "unaligned"],
)
def test_written_data_verifies(run: Run, device: Device, pattern: str, block: str) -> None:
    bounds = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    output = run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={device.uri}",
        f"--rw={pattern}",
        bounds,
        "--blockalign=512",
        "--iodepth=16",
        "--size=32m",
        "--randseed=1",
        "--buffer_compress_percentage=70",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",  # else a file is left in the working directory
    )
    assert "err= 0" in output
