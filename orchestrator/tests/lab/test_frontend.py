# SPDX-License-Identifier: GPL-2.0-or-later
"""What `frontend: auto` comes to; the integration tests have it come to it on a real host."""

from __future__ import annotations

from pathlib import Path

from kztlab.lab.frontend import decide
from kztlab.lab.plan import Options, plan
from kztlab.lab.progress import Progress
from kztlab.lab.record import LabRecord
from kztlab.places import Places
from kztlab.spec import Cluster, load

SPEC = Path("/somewhere/cluster.yaml")
PLACES = Places(Path("/s"), Path("/c"), Path("/r"), None)
ELSEWHERE = "qemu+tcp://elsewhere/session"


class Told(Progress):
    """What is told to people."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(
        self, subject: str, step: str, elapsed: float = 0.0, limit: float | None = None
    ) -> None:
        self.lines.append(f"{subject}: {step} {elapsed} {limit}")

    def note(self, message: str) -> None:
        self.lines.append(message)

    def done(self, subject: str, outcome: str, *, ok: bool = True) -> None:
        assert ok
        self.lines.append(f"{subject}: {outcome}")


def cluster(tmp_path: Path, guests: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"lab: a\nguests: {guests}\n")
    return load(path)


def frontends(decided: Cluster) -> dict[str, str]:
    return {name: spec.frontend for name, spec in decided.guests.items()}


def test_what_is_named_stays_and_nobody_is_asked(tmp_path: Path) -> None:
    told = Told()
    named = cluster(tmp_path, "{a: {}, b: {frontend: relay}, c: {frontend: none}}")
    assert decide(PLACES, named, None, None, told) == named
    assert told.lines == []


def test_guests_elsewhere_share_no_memory(tmp_path: Path) -> None:
    told = Told()
    spec = cluster(tmp_path, "{a: {frontend: auto}, b: {frontend: disk}, c: {frontend: auto}}")
    decided = decide(PLACES, spec, ELSEWHERE, None, told)
    assert frontends(decided) == {"a": "nbd", "b": "disk", "c": "nbd"}
    assert told.lines == [
        f"frontend: a, c: nbd: guests at {ELSEWHERE} may have no memory in common with the store"
    ]


def test_a_lab_that_is_up_keeps_what_it_has(tmp_path: Path) -> None:
    was = cluster(tmp_path, "{a: {frontend: vhost-user-blk}}")
    up: LabRecord = plan(PLACES, SPEC, was, Options(), None)
    told = Told()
    spec = cluster(tmp_path, "{a: {frontend: auto}, b: {frontend: auto}}")
    decided = decide(PLACES, spec, ELSEWHERE, up, told)
    assert frontends(decided) == {"a": "vhost-user-blk", "b": "nbd"}
    assert len(told.lines) == 1
    # And so it is no difference to what is up.
    plan(PLACES, SPEC, decided, Options(), up)
