# SPDX-License-Identifier: GPL-2.0-or-later
"""`up`: from a cluster.yaml to guests that have run its workloads, and a report.

It can be repeated: what is up is kept, what is missing is brought up, and the workloads run again
into a run directory of their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from kztlab import image
from kztlab.errors import Interrupted, KztlabError
from kztlab.hypervisor import Hypervisor, accelerator
from kztlab.lab import boot, record
from kztlab.lab.doctor import demand
from kztlab.lab.down import daemon
from kztlab.lab.frontend import decide
from kztlab.lab.keys import Keys
from kztlab.lab.lock import locked
from kztlab.lab.plan import plan
from kztlab.lab.run import Result, Run
from kztlab.lab.session import Member, Session
from kztlab.parallel import in_parallel
from kztlab.spec import Cluster, HostFacts, SpecError, check, load
from kztlab.store import Client, StoreClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kztlab.hypervisor import GuestState
    from kztlab.image import Image
    from kztlab.lab.doctor import Purpose
    from kztlab.lab.plan import Options
    from kztlab.lab.progress import Progress
    from kztlab.lab.record import GuestRecord, LabRecord
    from kztlab.places import Places


def up(places: Places, spec: Path, options: Options, progress: Progress) -> Result:
    """Bring the lab up, run its workloads and write the report.

    Raises `KztlabError` if it does not get as far as the guests' start, and `Interrupted` when it
    is interrupted. What goes wrong from the start on is in the result, beside what went well.
    """
    cluster = admitted(places, spec)
    with locked(places, cluster.lab):
        return up_locked(places, spec, cluster, options, progress)


def admitted(places: Places, spec: Path) -> Cluster:
    """The cluster of a file, if it is right and this host can carry it; nothing is started yet."""
    cluster = load(spec)
    known = record.find(places, cluster.lab)
    _check(cluster, known)
    purposes: list[Purpose] = ["guests"]
    if _own_store(cluster):
        purposes.append("store")
    if known is None:  # one that is up has its room; how much of /dev/shm it needs, `_check` knows
        purposes.append("disk")
    demand(purposes)
    return cluster


def up_locked(
    places: Places, spec: Path, cluster: Cluster, options: Options, progress: Progress
) -> Result:
    """`up` for a caller that holds the lab's lock."""
    known = record.find(places, cluster.lab)
    cluster = decide(places, cluster, options.uri, known, progress)
    wanted = plan(places, spec, cluster, options, known)
    with Hypervisor.connect(places, wanted.uri) as hypervisor:
        images = _images(places, wanted, progress)
        if wanted.accel is None:
            progress.step("accelerator", "choosing")
            chosen = accelerator(
                hypervisor, places, next(iter(images.values())), wanted=options.accel
            )
            progress.done("accelerator", f"{chosen.kind}: {chosen.reason}")
            wanted.accel = chosen.kind
        wanted.save(places)
        keys = Keys.of(places.lab(cluster.lab) / "keys")
        try:
            return _bring_up(Session(places, hypervisor, progress, wanted, keys), images)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the lab {cluster.lab} is still up, in whole or in part",
                hint=f"go on: kztlab up {spec}; end it: kztlab down {cluster.lab}",
            ) from None


def _own_store(cluster: Cluster) -> bool:
    """Whether the lab has guests that swap into a store, and it is not somebody else's."""
    swapping = any(guest.uses_store for guest in cluster.guests.values())
    return swapping and cluster.store.socket is None


def _check(cluster: Cluster, known: LabRecord | None) -> None:
    """Raise `SpecError` if this host cannot carry the lab, all of which is still to come."""
    facts = HostFacts.read()
    if known is not None:
        up = [guest.spec.memory for guest in known.guests.values() if guest.phase != "planned"]
        facts = HostFacts(
            memory_available=facts.memory_available + sum(up),
            shm_free=facts.shm_free + (known.cluster.store.memory if known.store else 0),
        )
    problems = check(cluster, facts)
    if problems:
        raise SpecError(problems)


def _images(places: Places, wanted: LabRecord, progress: Progress) -> dict[str, Image]:
    images = {}
    for name in sorted({guest.spec.image for guest in wanted.guests.values()}):
        images[name] = image.ensure(name, places, partial(progress.step, f"image {name}"))
        progress.done(f"image {name}", images[name].hash)
    return images


def _bring_up(session: Session, images: Mapping[str, Image]) -> Result:
    there = {state.guest: state for state in session.hypervisor.list(session.record.lab)}
    clients = _store(session, there)
    initrds = boot.initrds(session, images)

    with Run(session) as run:

        def bring_up(guest: GuestRecord) -> Member:
            member = boot.bring_up(
                session,
                guest,
                running=there.get(guest.name),
                image=images[guest.spec.image],
                initrd=initrds[guest.spec.image],
                client=clients.get(guest.name),
            )
            run.add(member)
            return member

        guests = session.record.guests
        works = {name: partial(bring_up, guest) for name, guest in guests.items()}
        members: dict[str, Member] = {}
        for name, outcome in in_parallel(works, session.stop).items():
            if isinstance(outcome, KztlabError):
                run.fail(outcome, guest=name)
            else:
                members[name] = outcome
        return run.finish(members)


def _store(session: Session, there: Mapping[str, GuestState]) -> dict[str, Client]:
    """See to it that the store serves and has a client for each guest that swaps into it.

    A guest that is to be booted finds an empty device: a client left by a former one goes.
    """
    lab = session.record
    if lab.store is None:
        return {}
    session.progress.step("store", "starting")
    if _own_store(lab.cluster):
        own = daemon(session.places, lab.lab)
        if not own.serves():
            session.places.service_folder(own.sockets)
            own.start(lab.cluster.store)
    clients = {}
    with StoreClient(lab.store.socket) as store:
        for guest in lab.guests.values():
            if guest.client is not None:
                if guest.name not in there:
                    store.remove_client(guest.client)
                clients[guest.name] = store.add_client(
                    guest.client,
                    guest.spec.swap,
                    dedup=lab.cluster.store.dedup,
                    weight=guest.spec.weight,
                    cap=guest.spec.cap,
                    reservation=guest.spec.reservation,
                )
    session.progress.done("store", "serving")
    return clients
