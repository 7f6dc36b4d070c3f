# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever arrives on a socket, at worst its connection ends."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from tests.support import nbd

if TYPE_CHECKING:
    from tests.interop.conftest import Device
    from tests.support.daemon import Daemon

pytestmark = pytest.mark.interop

NEGOTIATION = struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0)
REQUEST_MAGIC = struct.pack(">I", 0x25609513)


@pytest.mark.parametrize("opening", [b"", NEGOTIATION[:4], NEGOTIATION], ids=["", "flags", "go"])
def test_random_bytes_end_at_most_their_connection(
    daemon: Daemon, device: Device, opening: bytes
) -> None:
    chance = random.Random(1)
    page = chance.randbytes(4096)
    with nbd.Client(device.socket) as bystander:
        place = bystander.size - 4096
        bystander.write(place, page)
        for _ in range(200):
            noise = chance.randbytes(chance.randrange(1, 2000))
            # Every second one looks like requests for as long as a header is; none of them reaches
            # the bystander's page, because random offsets lie beyond any device.
            if chance.random() < 0.5:
                noise = REQUEST_MAGIC + noise
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rude:
                rude.connect(str(device.socket))
                # The server may close before everything is sent.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    rude.sendall(opening + noise)
                    rude.shutdown(socket.SHUT_WR)
                    while rude.recv(65536):
                        pass
        assert bystander.read(place, 4096) == page
        assert bystander.in_flight == 0
        assert bystander.reconnects == 0
    assert daemon.process.poll() is None
