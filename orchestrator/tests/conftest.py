# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests for tests: a kztlab of their own, the image, and domains that are gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.hypervisor import Domain, Hypervisor, session
from kztlab.image import Image, ensure
from kztlab.image.cpio import Archive
from kztlab.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.hypervisor import GuestState


class Machines:
    """Starts guests of one lab; all of them are ended with the test."""

    def __init__(self, hypervisor: Hypervisor, places: Places, image: Image, lab: str) -> None:
        self.hypervisor = hypervisor
        self.places = places
        self.image = image
        self.lab = lab
        self.folder = places.folder(places.lab(lab))

    def domain(self, guest: str, *, init: str | None = None, **changes: Any) -> Domain:  # noqa: ANN401
        """A guest to start: the image's kernel, with a script as its init if one is given."""
        domain = Domain(
            lab=self.lab,
            guest=guest,
            memory=128 << 20,
            vcpus=1,
            accelerator="tcg",
            kernel=self.image.kernel,
            initrd=self.image.initrd if init is None else self.initrd(guest, init),
            cmdline=self.image.cmdline,
            console_log=self.folder / "console" / f"{guest}.log",
        )
        return replace(domain, **changes)

    def start(self, guest: str, *, init: str | None = None, **changes: Any) -> GuestState:  # noqa: ANN401
        return self.hypervisor.start(self.domain(guest, init=init, **changes))

    def initrd(self, guest: str, script: str) -> Path:
        """The image's initrd with another init: in archives as elsewhere, the last one counts."""
        archive = Archive()
        head = (
            "#!/bin/busybox sh\nmount -t devtmpfs dev /dev\nexec </dev/console >/dev/console 2>&1\n"
        )
        archive.file("init", f"{head}{script}\n".encode(), 0o755)
        return self.write(f"{guest}.initrd", self.image.initrd.read_bytes() + archive.finish())

    def overlay(self, guest: str) -> Path:
        """A root disk over the image's."""
        path = self.folder / f"{guest}.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2"]
        subprocess.run([*command, "-b", self.image.disk, path], check=True)
        self.places.own(path)
        return path

    def raw(self, name: str, size: int) -> Path:
        """A sparse file of `size` bytes."""
        path = self.write(name, b"")
        os.truncate(path, size)
        return path

    def write(self, name: str, content: bytes) -> Path:
        """A file in the lab's folder that QEMU can use."""
        path = self.folder / name
        path.write_bytes(content)
        self.places.own(path)
        return path

    def end(self) -> None:
        for state in self.hypervisor.list(self.lab):
            self.hypervisor.destroy(state.lab, state.guest)


@contextlib.contextmanager
def _own_places() -> Iterator[Places]:
    """A kztlab of a test's own; pytest's folders are too deep for sockets, and closed."""
    home = Path(tempfile.mkdtemp(prefix="kzt-"))
    home.chmod(0o711)
    user = "kztlab" if os.getuid() == 0 else None
    own = Places(home / "state", home / "cache", home / "run", user)
    yield own
    session.stop(own, needed=lambda: False)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def places() -> Iterator[Places]:
    """The kztlab that the tests share."""
    with _own_places() as own:
        yield own


@pytest.fixture
def other_places() -> Iterator[Places]:
    """A kztlab of one test's own, whose libvirtd no other test's guests need."""
    with _own_places() as own:
        yield own


@pytest.fixture(scope="session")
def image() -> Image:
    """The standard image, from the user's cache."""
    return ensure("debian-trixie", Places.default(), lambda _step, _seconds: None)


@pytest.fixture(scope="session")
def hypervisor(places: Places) -> Iterator[Hypervisor]:
    with Hypervisor.connect(places) as connected:
        yield connected


@pytest.fixture
def machines(
    hypervisor: Hypervisor, places: Places, image: Image, request: pytest.FixtureRequest
) -> Iterator[Machines]:
    """A lab for one test."""
    number = f"{hash(request.node.nodeid) & 0xFFFFFF:06x}"
    lab = Machines(hypervisor, places, image, f"t{number}")
    yield lab
    lab.end()
