# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab of guests that are measured from outside while they work."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kztlab.hypervisor import Hypervisor
from kztlab.places import Places
from kztlab.store import StoreClient

KZTLAB = Path(sys.executable).with_name("kztlab")

TICKS = os.sysconf("SC_CLK_TCK")

PLUG_SECONDS = 30.0
# A kernel that knows no hotplug has to be told to look.
DISKS = """\
echo 1 >/sys/bus/pci/rescan
for disk in /sys/block/vd*; do echo "${disk##*/} $(cat $disk/serial)"; done"""


@dataclass(frozen=True)
class Processor:
    """Seconds of processor time."""

    guest: float
    """In the virtual CPUs' threads, with what QEMU does there for a device."""
    qemu: float
    """In QEMU's other threads."""
    store: float

    def since(self, before: "Processor") -> "Processor":
        return Processor(
            self.guest - before.guest, self.qemu - before.qemu, self.store - before.store
        )


@dataclass(frozen=True)
class Lab:
    """A lab that is up."""

    name: str
    places: Places
    hypervisor: Hypervisor

    def start(self, guest: str, script: str) -> subprocess.Popen[str]:
        """A shell script in a guest, its standard input and output at hand."""
        return subprocess.Popen(
            [KZTLAB, "exec", f"{self.name}/{guest}", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, guest: str, script: str) -> str:
        """What a shell script in a guest prints; raises `RuntimeError` if it fails."""
        with self.start(guest, script) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{guest} ended {script!r} with {process.returncode}: {output}")
        return output

    def qmp(self, guest: str, command: str, **arguments: Any) -> Any:  # noqa: ANN401
        """What a guest's QEMU returns."""
        return self.hypervisor.qmp(self.name, guest, command, **arguments)

    def plug(
        self, guest: str, path: Path, serial: str, *, read_only: bool = False, direct: bool = False
    ) -> None:
        """Add a raw file to a guest's disks; `direct`: past the host's page cache."""
        file: dict[str, Any] = {"driver": "file", "filename": str(path)}
        if direct:
            file |= {"aio": "native", "cache": {"direct": True}}
        node = {"driver": "raw", "node-name": serial, "file": file, "read-only": read_only}
        self.qmp(guest, "blockdev-add", **node)
        device = {"driver": "virtio-blk-pci", "id": serial, "serial": serial, "drive": serial}
        self.qmp(guest, "device_add", **device, bus="pci.0")

    def disks(self, guest: str, serials: Collection[str]) -> dict[str, str]:
        """The guest's names of its disks by their serial numbers, once those are there."""
        deadline = time.monotonic() + PLUG_SECONDS
        while True:
            lines = self.run(guest, DISKS).splitlines()
            found = {serial: name for name, _, serial in (line.partition(" ") for line in lines)}
            if found.keys() >= set(serials):
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"{guest} has not found its disks but {found}")

    @contextmanager
    def going(self, guest: str) -> Iterator[None]:
        """Let the processors of a guest go on, and stop them again."""
        self.qmp(guest, "cont")
        try:
            yield
        finally:
            self.qmp(guest, "stop")

    def processor(self, guest: str) -> Processor:
        """What guest and store have used up to now."""
        threads = [cpu["thread-id"] for cpu in self.qmp(guest, "query-cpus-fast")]
        status = Path(f"/proc/{threads[0]}/status").read_text().splitlines()
        (process,) = (int(line.split()[1]) for line in status if line.startswith("Tgid:"))
        cpus = sum(_seconds(Path(f"/proc/{process}/task/{thread}")) for thread in threads)
        whole = _seconds(Path(f"/proc/{process}"))
        socket = self.places.sockets(self.name) / "api.sock"
        if not socket.exists():  # no guest of the lab has anything there
            return Processor(cpus, whole - cpus, 0.0)
        with StoreClient(socket) as store:
            daemon = store.status()["pid"]
        return Processor(cpus, whole - cpus, _seconds(Path(f"/proc/{daemon}")))


@contextmanager
def running(name: str, spec: str) -> Iterator[Lab]:
    """Bring a lab up from its cluster.yaml, and down in the end."""
    places = Places.default()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kztbench-", suffix=".yaml") as file:
            file.write(spec)
            file.flush()
            subprocess.run([KZTLAB, "up", file.name], stdout=subprocess.DEVNULL, check=True)
        with Hypervisor.connect(places) as hypervisor:
            yield Lab(name, places, hypervisor)
    finally:
        subprocess.run([KZTLAB, "down", name], stdout=subprocess.DEVNULL, check=True)


def disk(places: Places, tree: Path, path: Path, size: int) -> None:
    """Make an ext4 disk of so many bytes with the files of a folder, which QEMU may open."""
    with path.open("xb") as file:
        file.truncate(size)
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal"]
    subprocess.run([*command, "-d", tree, path], check=True)
    places.own(path)


def _seconds(folder: Path) -> float:
    """A process's or a thread's processor time; a process's has that of threads that have ended."""
    # The name, in parentheses, may hold spaces.
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
