# SPDX-License-Identifier: GPL-2.0-or-later
"""fio inside a guest: the store's disk, QEMU's own, and qemu-storage-daemon's, all in one boot.

The other two are raw files in a tmpfs. They are plugged into a running guest whose swap disk is the
store's, with swap switched off. fio comes from the host with the libraries it needs, on a disk of
its own: guests reach no network, and their image stays the one that everybody boots.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import lab
from bench.fio import COMPRESSIBLE_PERCENT, SEED
from bench.lab import Lab
from kztlab.hypervisor import SWAP_SERIAL
from kztlab.places import Places

MIB = 1 << 20
DEVICE_BYTES = 128 * MIB
DEPTH = 32
PATTERNS = ("randwrite", "randread")
OWN, RAW, PEER = "vhost-user-blk", "virtio-blk", "storage-daemon"
SERIALS = {OWN: SWAP_SERIAL, RAW: "bench-raw", PEER: "vhost_user_blk"}
"""How a guest tells its disks; the storage daemon's export names itself."""
PROGRAM = "bench-fio"

GUEST = "vm"
SPEC = f"""\
lab: bench-fio
store: {{memory: 256MiB}}
guests:
  {GUEST}: {{memory: 512MiB, frontend: {OWN}, swap: {DEVICE_BYTES // MIB}MiB}}
"""

START_SECONDS = 30.0

PREPARE = """\
swapoff -a && mkdir -p /mnt/fio && mount -o ro /dev/{program} /mnt/fio"""
FIO = "/mnt/fio/ld.so --library-path /mnt/fio /mnt/fio/fio --output-format=json -"


@dataclass(frozen=True)
class Figure:
    """What one disk reached with one kind of data and requests, in the order of the rounds."""

    data: str
    pattern: str
    disk: str
    requests_per_second: list[float]

    @property
    def median(self) -> float:
        """Requests a second."""
        return median(self.requests_per_second)


def compare(rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    """Run all jobs on all disks in turn, once to fill them and then as often as asked."""
    rates: dict[tuple[str, str, str], list[float]] = {}
    with _folder() as folder, lab.running("bench-fio", SPEC) as guest, _plugged(guest, folder):
        paths = guest.disks(GUEST, {*SERIALS.values(), PROGRAM})
        guest.run(GUEST, PREPARE.format(program=paths.pop(PROGRAM)))
        for number in range(rounds + 1):
            for data, compressible in COMPRESSIBLE_PERCENT.items():
                progress(f"{number}/{rounds}: fio in a guest, {data}")
                # Who goes first is another one each round.
                disks = [*SERIALS][number % 3 :] + [*SERIALS][: number % 3]
                for (pattern, disk), rate in _run(guest, disks, paths, compressible).items():
                    if number > 0:
                        rates.setdefault((data, pattern, disk), []).append(rate)
    return [Figure(*key, runs) for key, runs in sorted(rates.items())]


def _run(
    guest: Lab, disks: list[str], paths: dict[str, str], compressible: int
) -> dict[tuple[str, str], float]:
    """One job after the other: every block is written once, then read once."""
    jobs = [(pattern, disk) for pattern in PATTERNS for disk in disks]
    options = {
        "ioengine": "libaio",
        "direct": 1,
        "iodepth": DEPTH,
        "bs": 4096,
        "size": DEVICE_BYTES,
        "randseed": SEED,
        "refill_buffers": 1,
        "buffer_compress_percentage": compressible,
        "stonewall": 1,
    }
    sections = {"global": options} | {
        f"{pattern} {disk}": {"rw": pattern, "filename": f"/dev/{paths[SERIALS[disk]]}"}
        for pattern, disk in jobs
    }
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key}={value}" for key, value in section.items())]
    output = guest.run(GUEST, f"{FIO} <<'END'\n" + "\n".join(lines) + "\nEND")
    # Some versions of fio print notes before the JSON.
    results = json.loads(output[output.index("{") :])["jobs"]
    rates = {}
    for (pattern, disk), result in zip(jobs, results, strict=True):
        side = result[pattern.removeprefix("rand")]
        if result["error"] or side["io_bytes"] != DEVICE_BYTES:
            raise RuntimeError(f"fio: {pattern} on {disk} ended early")
        rates[pattern, disk] = float(side["iops"])
    return rates


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in a tmpfs that QEMU can reach."""
    with tempfile.TemporaryDirectory(prefix="kztbench-", dir="/dev/shm") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@contextmanager
def _plugged(guest: Lab, folder: Path) -> Iterator[None]:
    """Plug the peers' disks and fio's into the guest."""
    places = guest.places
    for name in (RAW, PEER):
        places.own(_sparse(folder / name, DEVICE_BYTES))
    guest.plug(GUEST, folder / RAW, SERIALS[RAW])
    guest.plug(GUEST, _program(places, folder), PROGRAM, read_only=True)
    socket = folder / "sockets" / PEER
    socket.parent.mkdir(mode=0o700)
    places.own(socket.parent)
    with _storage_daemon(places, folder / PEER, socket):
        address = {"type": "unix", "data": {"path": str(socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        guest.qmp(GUEST, "chardev-add", id=PEER, backend=backend)
        guest.qmp(
            GUEST, "device_add", driver="vhost-user-blk-pci", id=PEER, chardev=PEER, bus="pci.0"
        )
        yield


@contextmanager
def _storage_daemon(places: Places, path: Path, socket: Path) -> Iterator[None]:
    """Serve a file as a vhost-user-blk disk, as the user that QEMU runs as."""
    account = places.account() if os.getuid() == 0 else None
    export = (
        f"vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    )
    daemon = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"file,node-name=disk,filename={path}"),
            *("--export", export),
        ],
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("qemu-storage-daemon did not start")
            time.sleep(0.01)
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def _program(places: Places, folder: Path) -> Path:
    """A disk with the host's fio, its libraries and their loader."""
    program = shutil.which("fio")
    if program is None:
        raise RuntimeError("fio is not installed")
    tree, disk = folder / "tree", folder / PROGRAM
    tree.mkdir()
    shutil.copyfile(program, tree / "fio")
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for library in map(Path, re.findall(r"/\S+", listed)):
        loader = library.name.startswith("ld-")
        shutil.copyfile(library, tree / ("ld.so" if loader else library.name))
    (tree / "ld.so").chmod(0o755)
    size = sum(path.stat().st_size for path in tree.iterdir()) * 5 // 4 + 16 * MIB
    lab.disk(places, tree, disk, size)
    shutil.rmtree(tree)
    return disk


def _sparse(path: Path, size: int) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    return path
