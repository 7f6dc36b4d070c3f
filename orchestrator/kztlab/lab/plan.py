# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cluster.yaml asks of a lab that may be up already.

A lab that is up can be given new guests, other workloads and another interval; its guests are then
kept as they are. What would change a guest or the store asks for `kztlab down` first: a guest whose
memory or swap silently differs from its file would spoil every figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kztlab.errors import BadInput
from kztlab.lab.record import GuestRecord, LabRecord, StoreRecord
from kztlab.spec.consistency import MAX_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from kztlab.places import Places
    from kztlab.spec import Cluster, Guest


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beyond the file."""

    accel: Literal["auto", "kvm", "tcg"] = "auto"
    uri: str | None = None


def plan(
    places: Places, spec: Path, cluster: Cluster, options: Options, up: LabRecord | None
) -> LabRecord:
    """The record of the lab as it shall be; `up` is the one it has.

    Raises `BadInput` if file or options differ from what is up in more than can be added to it.
    """
    if up is not None:
        hint = f"take it down first: kztlab down {cluster.lab}"
        if differences := list(_differences(up, cluster)):
            raise BadInput(
                f"the lab {cluster.lab} is up and {spec} says otherwise: " + "; ".join(differences),
                hint=hint,
            )
        if others := list(_other_options(up, options)):
            raise BadInput(f"the lab {cluster.lab} is up, {' and '.join(others)}", hint=hint)
    record = LabRecord(lab=cluster.lab, spec=spec.absolute(), cluster=cluster, uri=options.uri)
    if up is not None:
        record = up.model_copy(update={"spec": spec.absolute(), "cluster": cluster})
    if record.store is None and any(each.spec.uses_store for each in cluster.expanded()):
        record.store = _store(places, cluster)
    for guest in cluster.expanded():
        if guest.name not in record.guests:
            record.guests[guest.name] = _guest(places, cluster, guest)
    return record


def _store(places: Places, cluster: Cluster) -> StoreRecord:
    if cluster.store.socket is not None:
        return StoreRecord(socket=Path(cluster.store.socket))
    folder = places.sockets(cluster.lab)
    for guest in cluster.expanded():
        if guest.spec.uses_store:
            places.check_socket(folder / "clients" / guest.name / "relay.sock")
    return StoreRecord(socket=places.check_socket(folder / "api.sock"))


def _guest(places: Places, cluster: Cluster, guest: Guest) -> GuestRecord:
    return GuestRecord(
        name=guest.name,
        group=guest.group,
        spec=guest.spec,
        folder=places.lab(cluster.lab) / "guests" / guest.name,
        client=_client(places, cluster, guest.name) if guest.spec.uses_store else None,
    )


def _client(places: Places, cluster: Cluster, guest: str) -> str:
    """The guest's name in the store. Where several labs share one, the lab's id makes it unique:
    names of labs do not, as other kztlabs have the same, and "a-b" with "c" is "a" with "b-c"."""
    if cluster.store.socket is None:
        return guest
    name = f"{guest}-{places.lab_id(cluster.lab)}"
    if len(name) > MAX_NAME:
        raise BadInput(
            f"in a shared store, {guest} would be named {name}: over {MAX_NAME} characters",
            hint="give the guest a shorter name",
        )
    return name


def _differences(up: LabRecord, cluster: Cluster) -> Iterator[str]:
    wanted = {guest.name: guest for guest in cluster.expanded()}
    for name, record in up.guests.items():
        if name not in wanted:
            yield f"it has no guest {name}"
        else:
            yield from _changes(f"guests.{name}", record.spec, wanted[name].spec, but="count")
    if up.store is not None:
        yield from _changes("store", up.cluster.store, cluster.store)


def _other_options(up: LabRecord, options: Options) -> Iterator[str]:
    """Another libvirt has none of its guests: they would be taken for gone, and their pages too."""
    if options.uri not in {None, up.uri}:
        own = "this user's own libvirt"
        yield f"at {up.uri or own}, not {options.uri}"
    if options.accel not in {"auto", up.accel} and up.accel is not None:
        yield f"on {up.accel}, not {options.accel}"


def _changes(where: str, old: BaseModel, new: BaseModel, *, but: str = "") -> Iterator[str]:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for key, value in before.items():
        if key != but and value != after[key]:
            yield f"{where}.{key} is {value}, not {after[key]}"
