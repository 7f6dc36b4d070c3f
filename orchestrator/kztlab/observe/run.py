# SPDX-License-Identifier: GPL-2.0-or-later
"""The run directory: everything one run leaves behind, and where.

====================== ===========================================================
``spec.yaml``          the spec as it was resolved, every default written out
``samples/*.jsonl``    ``host``, ``store`` and ``guest-NAME``: see `kztlab.observe.samples`
``console/NAME.log``   the end of each guest's console
``summary.json``       results: see `kztlab.report.summary`
``junit.xml``          the same for CI
``report.html``        the same for people
====================== ===========================================================
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kztlab.errors import BadInput
from kztlab.observe.samples import Recorder, Sample, read_samples
from kztlab.spec import Cluster, dump, load

if TYPE_CHECKING:
    from pathlib import Path

MAX_CONSOLE = 4 << 20
"""Bytes kept of a console log: a guest can write to it without end."""


class RunDirectory:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, cluster: Cluster) -> RunDirectory:
        """Makes the directory and writes the spec. Raises `FileExistsError` if it exists."""
        path.mkdir(parents=True)
        run = cls(path)
        (path / "samples").mkdir()
        (path / "console").mkdir()
        run.write("spec.yaml", dump(cluster))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory; raises `BadInput` if it is none."""
        if not (path / "spec.yaml").is_file():
            raise BadInput(f"{path} is not a run directory", hint="it has no spec.yaml")
        return cls(path)

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def junit(self) -> Path:
        return self.path / "junit.xml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def cluster(self) -> Cluster:
        """The spec as it was resolved."""
        return load(self.spec)

    def recorder(self, source: str) -> Recorder:
        """Appends to the samples of a source: ``host``, ``store`` or ``guest-NAME``."""
        return Recorder(self._samples(source))

    def samples(self, source: str) -> list[Sample]:
        """What has been recorded of a source."""
        return read_samples(self._samples(source))

    def guests(self) -> list[str]:
        """The guests of which there are samples, by name."""
        files = (self.path / "samples").glob("guest-*.jsonl")
        return sorted(file.stem.removeprefix("guest-") for file in files)

    def console(self, guest: str) -> Path:
        """Where the console log of a guest is kept."""
        return self.path / "console" / f"{guest}.log"

    def keep_console(self, guest: str, log: Path) -> None:
        """Copies the end of a guest's console log; one that was never written is left out."""
        try:
            with log.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - MAX_CONSOLE))
                self.console(guest).write_bytes(stream.read(MAX_CONSOLE))
        except FileNotFoundError:
            return

    def write(self, name: str, text: str) -> Path:
        """Writes a file whole: readers see the old one or the new one, never a part."""
        target = self.path / name
        part = target.with_name(f".{name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(target)
        return target

    def _samples(self, source: str) -> Path:
        return self.path / "samples" / f"{source}.jsonl"
