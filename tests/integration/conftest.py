# SPDX-License-Identifier: GPL-2.0-or-later
"""The real command line with real guests, in a kztlab of the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from kztlab.places import Places
from kztlab.store import StoreClient

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Path(sys.executable).with_name("kztlab")


@dataclass(frozen=True)
class Kztlab:
    """One kztlab: its folders, and a place for cluster.yaml files."""

    places: Places
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | {
            "KZTLAB_STATE": str(self.places.state),
            "KZTLAB_RUNTIME": str(self.places.runtime),
        }

    def spec(self, name: str, text: str) -> Path:
        path = self.home / f"{name}.yaml"
        path.write_text(text)
        return path

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env=self.environ, capture_output=True, text=True, check=False
        )

    def json(self, *arguments: str | Path, code: int = 0) -> Any:  # noqa: ANN401
        """What the command prints with --json, if it ends with this exit code."""
        done = self(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str | Path) -> Started:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        return Started(process)

    def store(self, lab: str) -> StoreClient:
        return StoreClient(self.places.sockets(lab) / "api.sock")

    def labs(self) -> list[str]:
        return [lab["lab"] for lab in self.json("ls")["labs"]]

    def processes(self) -> list[str]:
        """The command lines of this kztlab's processes: commands, guests, stores, libvirtd."""
        marks = [str(self.places.state).encode(), str(self.places.runtime).encode()]
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            except OSError:
                continue
            if int(path.name) != os.getpid() and any(mark in words for mark in marks):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def leftovers(self) -> list[str]:
        """Processes, sockets, arenas and labs of this kztlab."""
        left = self.processes()
        for folder in (self.places.labs, self.places.runtime):
            left += map(str, folder.rglob("*"))
        return left


class Started:
    """A command at work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With it whatever it has started, such as an ssh that waits for a guest.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def until(self, text: str) -> None:
        """Return once it has said this on stderr."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        pytest.fail(f"it never said {text!r} but:\n{''.join(self.said)}")

    def end(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Its exit code, stdout and stderr, after this signal."""
        if number is not None:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate()
        return self.process.returncode, stdout, "".join(self.said) + stderr


@pytest.fixture(scope="session")
def kztlab() -> Iterator[Kztlab]:
    """pytest's own folders are too deep for sockets, and closed to the service user."""
    home = Path(tempfile.mkdtemp(prefix="kzt-"))
    home.chmod(0o711)
    user = "kztlab" if os.getuid() == 0 else None
    places = Places(home / "state", Places.default().cache, home / "run", user)
    found = Kztlab(places, home)
    yield found
    done = found("down", "--all")
    assert done.returncode == 0, done.stderr
    assert found.leftovers() == []
    shutil.rmtree(home)


SHARED = """\
lab: shared
guests:
  a: {memory: 160MiB, swap: 512MiB}
"""

LOAD = """\
workloads:
  - {name: fill, on: [a], anon: {size: 272MiB, passes: 1}}
"""


@dataclass(frozen=True)
class Up:
    """The lab that tests share, and what bringing it up with its load came to."""

    kztlab: Kztlab
    spec: Path
    result: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (Path(self.result["run"]) / "summary.json").read_text()
        )
        return content

    def again(self, name: str, workloads: str) -> Path:
        """The same lab with other workloads."""
        return self.kztlab.spec(name, f"{SHARED}{workloads}")


@pytest.fixture(scope="session")
def shared(kztlab: Kztlab) -> Up:
    spec = kztlab.spec("shared", SHARED + LOAD)
    return Up(kztlab, spec, kztlab.json("up", spec))
