# SPDX-License-Identifier: GPL-2.0-or-later
"""A real daemon, and a fresh client of it for every test."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.daemon import Daemon

SWAP = 256 << 20

Run = Callable[..., str]


@dataclass(frozen=True)
class Device:
    """A client's swap device."""

    name: str
    socket: Path

    @property
    def uri(self) -> str:
        """Its address, as NBD clients write it."""
        return f"nbd+unix:///?socket={self.socket}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without clients."""
    with Daemon(tmp_path_factory.mktemp("kztmemd") / "s", memory="512MiB") as daemon:
        yield daemon.start()


@pytest.fixture
def new_device(daemon: Daemon) -> Iterator[Callable[[], Device]]:
    """Makes devices that go with the test."""
    devices: list[Device] = []
    with daemon.http() as api:

        def make() -> Device:
            name = f"c{next(_numbers)}"
            answer = api.post("/v1/clients", json={"name": name, "swap": SWAP})
            device = Device(name, Path(answer.raise_for_status().json()["nbd"]))
            devices.append(device)
            return device

        yield make
        for device in devices:
            api.delete(f"/v1/clients/{device.name}").raise_for_status()


@pytest.fixture
def device(new_device: Callable[[], Device]) -> Device:
    """A fresh device of 256 MiB."""
    return new_device()


@pytest.fixture
def run() -> Run:
    """Runs an NBD client of another project; its output. The test is skipped where it is not."""

    def run(program: str, *arguments: str) -> str:
        if shutil.which(program) is None:
            pytest.skip(f"no such program: {program}")
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


_numbers = itertools.count(1)
