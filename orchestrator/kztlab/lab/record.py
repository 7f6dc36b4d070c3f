# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a lab on disk: `labs/NAME/lab.json`.

The rule that makes labs findable: everything is written here *before* it is started. So whatever a
killed `up` leaves behind is listed by `ls` and ended by `down`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kztlab.errors import BadInput, HostUnable
from kztlab.spec import Cluster, GuestSpec
from kztlab.spec.fields import NAME_PATTERN

if TYPE_CHECKING:
    from kztlab.places import Places

FILE = "lab.json"
NAME = re.compile(NAME_PATTERN)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GuestRecord(_Record):
    """One guest, from before it is booted until the lab goes down."""

    name: str
    group: str
    spec: GuestSpec
    folder: Path
    """Its overlay, console log and swap file."""
    client: str | None = None
    """Its name in the store, for the frontends that swap into one."""
    phase: Literal["planned", "booting", "ready"] = "planned"
    """How far `up` got with it; not whether it runs: that is for the hypervisor to say."""

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def overlay(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def swap(self) -> Path:
        """The raw file behind a swap device that the store does not keep."""
        return self.folder / "swap.raw"


class StoreRecord(_Record):
    """The store that the lab's guests swap into."""

    socket: Path
    """Its API: of the lab's own daemon, or of the one that `store.socket` names."""


class LabRecord(_Record):
    """One lab."""

    version: Literal[1] = 1
    lab: str
    spec: Path
    """The cluster.yaml it was brought up from."""
    cluster: Cluster
    """That file's content, as resolved then."""
    accel: Literal["kvm", "tcg"] | None = None
    uri: str | None = None
    """The libvirt connection its guests were booted through, if not the usual one."""
    store: StoreRecord | None = None
    guests: dict[str, GuestRecord] = {}
    run: Path | None = None
    """The newest run directory."""

    def save(self, places: Places) -> None:
        """Write the file in one step, so that no reader ever sees half of it."""
        path = places.lab(self.lab) / FILE
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise HostUnable(f"cannot write {path}: {error.strerror}") from error


def find(places: Places, lab: str) -> LabRecord | None:
    """The lab's record, or None if there is no such lab; `HostUnable` if it cannot be read."""
    path = places.lab(check_name(lab)) / FILE
    try:
        return LabRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise HostUnable(
            f"cannot make sense of {path}: {error}",
            hint=f"`kztlab down {lab}` ends whatever is left of it",
        ) from error


def readable(places: Places, lab: str) -> LabRecord | None:
    """The lab's record, for whom a damaged one is as good as none."""
    try:
        return find(places, lab)
    except HostUnable:
        return None


def check_name(lab: str) -> str:
    """`lab`, if it can be a lab's name at all; else `BadInput`. It becomes part of paths."""
    if NAME.fullmatch(lab) is None:
        raise BadInput(
            f"{lab!r} is not a lab's name", hint="small letters, digits and hyphens, a letter first"
        )
    return lab


def get(places: Places, lab: str) -> LabRecord:
    """The lab's record; `BadInput` if there is no such lab."""
    record = find(places, lab)
    if record is None:
        known = ", ".join(names(places))
        hint = f"there is: {known}" if known else "none is up; start one: kztlab up SPEC"
        raise BadInput(f"there is no lab {lab}", hint=hint)
    return record


def names(places: Places) -> list[str]:
    """Every lab that has a folder, whole or half-made."""
    try:
        entries = [entry.name for entry in places.labs.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostUnable(f"cannot read {places.labs}: {error.strerror}") from error
    return sorted(name for name in entries if NAME.fullmatch(name))
