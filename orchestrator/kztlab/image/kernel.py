# SPDX-License-Identifier: GPL-2.0-or-later
"""The bootable ELF inside Linux's x86 bzImage, or what is one already.

QEMU enters a kernel with a PVH note directly at its 32-bit entry. That spares the guest the
decompression of its own kernel, a second or two of an emulated processor in every boot.
Layout: Documentation/arch/x86/boot.rst of Linux.
"""

from __future__ import annotations

import struct
import subprocess

from kztlab.errors import HostUnable

_MAGIC = (0x202, b"HdrS")
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248  # offset from the protected-mode code, then the length
_SECTOR = 512
_ZSTD = b"\x28\xb5\x2f\xfd"
_ELF = b"\x7fELF"
_SIZE_SUFFIX = 4  # the build appends the uncompressed size to the payload


def vmlinux(bzimage: bytes) -> bytes:
    """Decompress the kernel; raises `HostUnable` for one that is not packed with zstd."""
    if bzimage.startswith(_ELF):
        return bzimage
    offset, magic = _MAGIC
    if bzimage[offset : offset + len(magic)] != magic:
        raise HostUnable("the kernel's package holds no x86 bzImage")
    setup = (bzimage[_SETUP_SECTORS] or 4) + 1
    start, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start += setup * _SECTOR
    payload = bzimage[start : start + length - _SIZE_SUFFIX]
    if not payload.startswith(_ZSTD):
        raise HostUnable("the kernel is not compressed with zstd, the only way known here")
    unpacked = subprocess.run(["zstd", "-dc"], input=payload, capture_output=True, check=False)
    if unpacked.returncode or not unpacked.stdout.startswith(_ELF):
        raise HostUnable(f"cannot unpack the kernel: {unpacked.stderr.decode(errors='replace')}")
    return unpacked.stdout
