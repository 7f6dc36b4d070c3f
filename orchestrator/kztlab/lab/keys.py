# SPDX-License-Identifier: GPL-2.0-or-later
"""The SSH keys of a lab: one the host shows to its guests, one the guests show to the host.

Both are made for the lab and go with it, so that a guest can be trusted on first sight and nothing
of the user's own keys enters one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Keys:
    """Where a lab's two key pairs lie: each a private file, its public half in a `.pub` beside."""

    client: Path
    host: Path

    @classmethod
    def of(cls, folder: Path) -> Keys:
        """The lab's keys in `folder`, made if they are not there yet."""
        folder.mkdir(mode=0o700, exist_ok=True)
        keys = cls(folder / "client", folder / "host")
        for path in (keys.client, keys.host):
            if not public(path).exists():
                _make(path)
        return keys

    @property
    def authorized_key(self) -> str:
        return public(self.client).read_text("ascii").strip()

    @property
    def host_key(self) -> str:
        """The guests' public host key, as in a known_hosts line after the host's name."""
        return public(self.host).read_text("ascii").strip()


def public(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _make(path: Path) -> None:
    """Write the pair; the public half last, so that its presence says that both are whole."""
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    half = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public(path).write_bytes(half + b" kztlab\n")
