# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a client's sockets are. Standard library only, as all that is loaded first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kztmem.settings import check_socket_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class ClientSockets:
    """A client's sockets, in a directory of their own."""

    folder: Path

    @classmethod
    def of(cls, sockets: Path, client: str) -> ClientSockets:
        """Those of a client below the directory of all sockets."""
        return cls(sockets / "clients" / client)

    @property
    def nbd(self) -> Path:
        """Its swap device, for NBD clients."""
        return self.folder / "nbd.sock"

    @property
    def relay(self) -> Path:
        """The same device for the guest's agent, through a virtio-serial port."""
        return self.folder / "relay.sock"

    @property
    def vhost(self) -> Path:
        """The same device for a frontend that shares its guest's memory: vhost-user-blk."""
        return self.folder / "vhost.sock"

    @property
    def tmem(self) -> Path:
        """Pools of its own, for the guest's kernel, through a virtio-serial port."""
        return self.folder / "tmem.sock"

    @property
    def ctl(self) -> Path:
        """The agent's reports, through another such port."""
        return self.folder / "ctl.sock"

    def __iter__(self) -> Iterator[Path]:
        return iter((self.nbd, self.relay, self.vhost, self.tmem, self.ctl))

    def check(self, *, key: str) -> ClientSockets:
        """Returns itself or raises `BadInput` when the kernel would refuse a path."""
        for path in self:
            check_socket_path(path, key=key)
        return self

    def to_json(self) -> dict[str, str]:
        """The paths by what they are for."""
        return {path.stem: str(path) for path in self}
