# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive format of Linux's initramfs: cpio "newc", written from memory.

Everything belongs to root, and carries no time and no inode of the host: the same content gives the
same bytes.
"""

from __future__ import annotations

import stat

_ALIGNMENT = 4
_BLOCK = 512
_TRAILER = "TRAILER!!!"


class Archive:
    """Collects entries; parents have to be added before what they hold."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        """The archive with its trailer, padded so that another one may follow it."""
        self._add(_TRAILER, 0, b"")
        archive = b"".join(self._parts)
        return archive + bytes(-len(archive) % _BLOCK)

    def _add(self, path: str, mode: int, content: bytes) -> None:
        self._entries += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, checksum
        fields = (self._entries, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [_padded(header + name), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
