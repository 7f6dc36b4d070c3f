# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's block layer against a client's socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.conftest import Device, Run

pytestmark = pytest.mark.interop


def qemu_io(run: Run, device: Device, *commands: str) -> None:
    """Runs commands in one connection; a pattern that differs fails the test."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    output = run("qemu-io", "-f", "raw", *arguments, device.uri)
    assert "verification failed" not in output


def test_patterns(run: Run, device: Device) -> None:
    qemu_io(
        run,
        device,
        "read -P 0 0 1M",
        "write -P 0x5a 4k 64k",
        "write -P 0xa5 1M 4M",
        "read -P 0 0 4k",
        "read -P 0x5a 4k 64k",
        "read -P 0 68k 4k",
        "read -P 0xa5 1M 4M",
    )


def test_zeroes(run: Run, device: Device) -> None:
    qemu_io(
        run,
        device,
        "write -P 1 0 64k",
        "write -z 8k 8k",
        "write -z -u 32k 8k",
        "read -P 1 0 8k",
        "read -P 0 8k 8k",
        "read -P 1 16k 16k",
        "read -P 0 32k 8k",
        "read -P 1 40k 24k",
    )


def test_discard_drops_and_reads_as_zeroes(run: Run, device: Device) -> None:
    qemu_io(
        run, device, "write -P 1 0 64k", "discard 4k 32k", "read -P 0 4k 32k", "read -P 1 36k 28k"
    )


def test_flush_and_fua(run: Run, device: Device) -> None:
    qemu_io(run, device, "write -f -P 3 0 4k", "flush", "read -P 3 0 4k")


def test_unaligned(run: Run, device: Device) -> None:
    qemu_io(
        run,
        device,
        "write -P 1 0 12k",
        "write -P 2 100 5000",
        "write -z 6000 3000",
        "read -P 1 0 100",
        "read -P 2 100 5000",
        "read -P 1 5100 900",
        "read -P 0 6000 3000",
        "read -P 1 9000 3288",
    )


def test_a_new_connection_sees_what_the_old_one_wrote(run: Run, device: Device) -> None:
    qemu_io(run, device, "write -P 7 128k 8k")
    qemu_io(run, device, "read -P 7 128k 8k")


def test_map_tells_stored_from_holes(run: Run, device: Device) -> None:
    qemu_io(run, device, "write -P 7 1M 64k")
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", device.uri))
    assert [(extent["start"], extent["length"], extent["data"]) for extent in extents] == [
        (0, 1 << 20, False),
        (1 << 20, 64 << 10, True),
        ((1 << 20) + (64 << 10), (255 << 20) - (64 << 10), False),
    ]


def test_bench_writes_and_reads(run: Run, device: Device) -> None:
    bench = ["bench", "-f", "raw", "-c", "4096", "-d", "16", "-s", "4096"]
    run("qemu-img", *bench, "-w", "--pattern=9", device.uri)
    run("qemu-img", *bench, device.uri)
    qemu_io(run, device, "read -P 9 0 16M")


def test_convert_and_compare(run: Run, device: Device, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(256 << 20)
        for place in range(0, 256 << 20, 7 << 20):
            file.seek(place + 12345)
            file.write(b"kztlab" * 20_000)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), device.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), device.uri)
