# SPDX-License-Identifier: GPL-2.0-or-later
"""libnbd's tools against a client's socket."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from tests.support import nbd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.interop.conftest import Device, Run

pytestmark = pytest.mark.interop

MIB = 1 << 20


def test_nbdinfo_sees_every_capability(run: Run, device: Device) -> None:
    info = json.loads(run("nbdinfo", "--json", device.uri))
    assert info["protocol"] == "newstyle-fixed"
    assert info["structured"] is True
    (export,) = info["exports"]
    assert export["export-size"] == 256 * MIB
    assert export["contexts"] == ["base:allocation"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    assert export["block_size_maximum"] == 32 * MIB
    able = {key for key, value in export.items() if value is True}
    assert able == {
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    }


def test_nbdinfo_lists_one_export(run: Run, device: Device) -> None:
    listing = json.loads(run("nbdinfo", "--json", "--list", device.uri))
    assert [export["export-name"] for export in listing["exports"]] == ["swap"]


def test_both_export_names_are_the_device(run: Run, device: Device) -> None:
    named = device.uri.replace(":///?", ":///swap?")
    with nbd.Client(device.socket) as client:
        client.write(0, b"x" * 4096)
    assert run("nbdinfo", "--map", named) == run("nbdinfo", "--map", device.uri)


def test_an_unknown_export_is_refused(device: Device) -> None:
    with pytest.raises(ConnectionRefusedError, match="no such export"):
        nbd.Connection(device.socket, "other")


def test_nbdinfo_maps_what_is_stored(run: Run, device: Device) -> None:
    with nbd.Client(device.socket) as client:
        client.write(MIB, b"x" * MIB)
    extents = json.loads(run("nbdinfo", "--map", "--json", device.uri))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in extents] == [
        (0, MIB, 3),
        (MIB, MIB, 0),
        (2 * MIB, 254 * MIB, 3),
    ]


def test_nbdcopy_brings_back_what_it_brought(run: Run, device: Device, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    chance = random.Random(1)
    with source.open("wb") as file:
        file.truncate(256 * MIB)
        for place in range(0, 256 * MIB, 5 * MIB):
            file.seek(place)
            file.write(chance.randbytes(MIB // 2) + bytes(range(256)) * 2048)
    run("nbdcopy", "--flush", str(source), device.uri)
    run("nbdcopy", device.uri, str(copy))
    run("cmp", str(source), str(copy))


def test_two_clients_at_the_same_offsets(
    run: Run, new_device: Callable[[], Device], tmp_path: Path
) -> None:
    devices = [new_device(), new_device()]
    for number, device in enumerate(devices):
        source = tmp_path / f"source-{number}"
        source.write_bytes(random.Random(number).randbytes(4 * MIB).ljust(256 * MIB, b"\0"))
        run("nbdcopy", str(source), device.uri)
    for number, device in enumerate(devices):
        copy = tmp_path / f"copy-{number}"
        run("nbdcopy", device.uri, str(copy))
        run("cmp", str(tmp_path / f"source-{number}"), str(copy))
