# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guest is meant: LAB/GUEST, GUEST where only one lab has it, or LAB if it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, GuestLost
from kztlab.hypervisor import GuestState, Hypervisor
from kztlab.lab import record
from kztlab.lab.keys import Keys

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.lab.record import GuestRecord, LabRecord
    from kztlab.places import Places


@dataclass(frozen=True, slots=True)
class Target:
    lab: LabRecord
    guest: GuestRecord


def resolve(places: Places, name: str) -> Target:
    """The guest of this name; `BadInput` if there is none or more than one."""
    labs = [found for each in record.names(places) if (found := record.readable(places, each))]
    targets = [Target(lab, guest) for lab in labs for guest in lab.guests.values()]
    for matches in (
        [each for each in targets if name == f"{each.lab.lab}/{each.guest.name}"],
        [each for each in targets if name == each.guest.name],
        [each for each in targets if name == each.lab.lab],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise BadInput(f"{name} is not enough to tell which guest", hint=_listed(matches))
    raise BadInput(f"there is no guest {name}", hint=_listed(targets))


def running(places: Places, target: Target) -> GuestState:
    """The guest as libvirt has it; `GuestLost` if it does not run."""
    with Hypervisor.connect(places, target.lab.uri) as hypervisor:
        state = hypervisor.find(target.lab.lab, target.guest.name)
    if state is None:
        raise GuestLost(
            f"guest {target.guest.name} of lab {target.lab.lab} does not run",
            hint=f"its console: kztlab logs {target.lab.lab}/{target.guest.name}",
        )
    return state


def ssh_command(places: Places, target: Target, state: GuestState) -> list[str]:
    """The system's SSH client with this lab's keys and nothing of the user's own configuration."""
    keys = Keys.of(places.lab(target.lab.lab) / "keys")
    alias = f"kztlab-{target.lab.lab}"
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(_known_hosts(keys, alias)),
        "HostKeyAlias": alias,
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    command = ["ssh", "-F", "none", "-i", str(keys.client), "-p", str(state.ssh_port)]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    return [*command, "root@127.0.0.1"]


def _known_hosts(keys: Keys, alias: str) -> Path:
    path = keys.host.with_name("known_hosts")
    path.write_text(f"{alias} {keys.host_key}\n", "ascii")
    return path


def _listed(targets: list[Target]) -> str:
    names = ", ".join(f"{each.lab.lab}/{each.guest.name}" for each in targets)
    return f"there is: {names}" if names else "no lab is up"


def only_lab(places: Places) -> str:
    """The one lab there is; `BadInput` if it has to be named."""
    labs = record.names(places)
    if len(labs) == 1:
        return labs[0]
    raise BadInput("say which lab" if labs else "no lab is up", hint=", ".join(labs) or None)
