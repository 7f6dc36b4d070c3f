# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels taken out of their bzImage; the guest's boot shows that the real one is."""

from __future__ import annotations

import struct
import subprocess

import pytest

from kztlab.errors import HostUnable
from kztlab.image.kernel import vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 64
SECTOR = 512


def bzimage(payload: bytes, *, setup: int = 3) -> bytes:
    """The fields that matter of a bzImage with `setup` sectors beside the boot sector."""
    image = bytearray((setup + 1) * SECTOR)
    image[0x1F1] = setup
    image[0x202:0x206] = b"HdrS"
    code = b"\x90" * 100  # stands before the payload
    struct.pack_into("<II", image, 0x248, len(code), len(payload))
    return bytes(image) + code + payload + b"\x90" * 100


def zstd(content: bytes) -> bytes:
    packed = subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout
    return packed + struct.pack("<I", len(content))


def test_gives_the_elf_inside() -> None:
    assert vmlinux(bzimage(zstd(ELF))) == ELF


def test_takes_an_elf_as_it_is() -> None:
    assert vmlinux(ELF) == ELF


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "no x86 bzImage"),
        (b"\x7fEL", "no x86 bzImage"),
        (bzimage(b"\x1f\x8b gzip"), "not compressed with zstd"),
        (bzimage(zstd(ELF)[:-20]), "cannot unpack"),
        (bzimage(zstd(b"no ELF")), "cannot unpack"),
    ],
)
def test_anything_else_is_told(image: bytes, reason: str) -> None:
    with pytest.raises(HostUnable, match=reason):
        vmlinux(image)
