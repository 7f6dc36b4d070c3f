# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages to measure a store with: a guest's memory, a process's memory, files."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kztlab.hypervisor import Hypervisor
from kztlab.lab import record
from kztlab.places import Places

PAGE = 4096

LAB = "bench-corpus"
GUEST_MIB = 192
SPEC = f"""\
lab: {LAB}
guests:
  vm: {{memory: {GUEST_MIB}MiB, frontend: none}}
"""

PROCESS = """\
import pydantic, asyncio, email, http.client, json, sqlite3, unittest
import kztlab.spec, kztlab.report.html, kztmem.api
schema = kztlab.spec.Cluster.model_json_schema()
print("ready", flush=True)
input()
"""

PRESENT = 1 << 63
FILE_OR_SHARED = 1 << 61
"""Bits of an entry of /proc/PID/pagemap."""


def guest(folder: Path, progress: Callable[[str], None]) -> Path:
    """All of a guest's memory, as it is once it has booted."""
    progress("booting a guest for its memory")
    dump = folder / "guest.memory"
    spec = folder / "guest.yaml"
    spec.write_text(SPEC)
    kztlab = Path(sys.executable).with_name("kztlab")
    try:
        subprocess.run([kztlab, "up", spec], check=True, stdout=subprocess.DEVNULL)
        places = Places.default()
        with Hypervisor.connect(places, record.get(places, LAB).uri) as hypervisor:
            hypervisor.qmp(LAB, "vm", "pmemsave", val=0, size=GUEST_MIB << 20, filename=str(dump))
    finally:
        subprocess.run([kztlab, "down", LAB], check=True, stdout=subprocess.DEVNULL)
    return dump


def process(folder: Path, progress: Callable[[str], None]) -> Path:
    """The private memory of a Python process that has loaded a program, without its files."""
    progress("starting a process for its memory")
    dump = folder / "process.memory"
    with _running(PROCESS) as pid, dump.open("wb") as out:
        memory = Path(f"/proc/{pid}/mem").open("rb", buffering=0)  # noqa: SIM115
        pagemap = Path(f"/proc/{pid}/pagemap").open("rb", buffering=0)  # noqa: SIM115
        with memory, pagemap:
            for start, end in _private(pid):
                pagemap.seek(start // PAGE * 8)
                entries = memoryview(pagemap.read((end - start) // PAGE * 8)).cast("Q")
                for number, entry in enumerate(entries):
                    if entry & PRESENT and not entry & FILE_OR_SHARED:
                        memory.seek(start + number * PAGE)
                        out.write(memory.read(PAGE))
    return dump


def files(_folder: Path, _progress: Callable[[str], None]) -> Path:
    """What a system's programs and libraries are."""
    return Path("/usr/lib")


@contextmanager
def _running(program: str) -> Iterator[int]:
    """Run a program that says when it is ready and then waits for its input's end."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        if child.stdout is None or child.stdout.readline() != "ready\n":
            raise RuntimeError("the process whose memory is wanted did not start")
        yield child.pid
        child.kill()


def _private(pid: int) -> Iterator[tuple[int, int]]:
    """Ranges of a process's private memory, writable or made from it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r..p .*?(\[v\w+\])?$", line)
        if match and not match[3]:
            yield int(match[1], 16), int(match[2], 16)


CORPORA = {
    "a guest's memory after boot": guest,
    "a Python process": process,
    "files of /usr/lib": files,
}
