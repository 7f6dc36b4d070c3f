# SPDX-License-Identifier: GPL-2.0-or-later
"""What `frontend: auto` is: the shortest way into the store that guest and host have.

Every image has a virtio disk, so it is the host that decides. A lab that is up keeps what was
decided when it came up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.hypervisor import Hypervisor, vhost_user_obstacle

if TYPE_CHECKING:
    from kztlab.lab.progress import Progress
    from kztlab.lab.record import LabRecord
    from kztlab.places import Places
    from kztlab.spec import Cluster
    from kztlab.spec.fields import Frontend


def decide(
    places: Places, cluster: Cluster, uri: str | None, up: LabRecord | None, progress: Progress
) -> Cluster:
    """The cluster with a frontend by name for each guest; `up` is the lab as it is already."""
    undecided = [name for name, spec in cluster.guests.items() if spec.frontend == "auto"]
    decided: dict[str, Frontend] = {}
    if up is not None:
        uri = uri or up.uri
        known = up.cluster.guests
        decided = {name: known[name].frontend for name in undecided if name in known}
    if fresh := [name for name in undecided if name not in decided]:
        frontend, reason = _best(places, uri)
        decided |= dict.fromkeys(fresh, frontend)
        progress.done("frontend", f"{', '.join(fresh)}: {frontend}: {reason}")
    guests = {
        name: spec.model_copy(update={"frontend": decided.get(name, spec.frontend)})
        for name, spec in cluster.guests.items()
    }
    return cluster.model_copy(update={"guests": guests})


def _best(places: Places, uri: str | None) -> tuple[Frontend, str]:
    """A frontend, and why it is that one."""
    if uri is not None:
        return "nbd", f"guests at {uri} may have no memory in common with the store"
    with Hypervisor.connect(places) as hypervisor:
        obstacle = vhost_user_obstacle(hypervisor, places)
    if obstacle is not None:
        return "nbd", obstacle
    return "vhost-user-blk", "the store serves the guest's queues itself"
