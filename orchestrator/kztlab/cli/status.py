# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab status`: a lab's guests and store, as they are now."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kztlab.cli.output import emit, json_option, table
from kztlab.errors import GuestLost
from kztlab.lab import record
from kztlab.lab.status import LabStatus, status
from kztlab.lab.target import only_lab
from kztlab.places import Places

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lab", metavar="LAB", nargs="?", help="its name; not needed if it is alone")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    places = Places.default()
    found = status(places, record.get(places, args.lab or only_lab(places)))
    if args.json:
        emit(asdict(found))
    else:
        _show(found)
    return GuestLost.exit_code if any(guest.lost for guest in found.guests) else 0


def _show(found: LabStatus) -> None:
    print(f"lab {found.lab}, from {found.spec}, accelerator {found.accel or 'not chosen yet'}")
    if found.store:
        print(_store(found.store))
    if found.store_error:
        print(f"store: {found.store_error}")
    table(
        ("guest", "frontend", "state", "ssh port", "stored pages", "stored MiB", ""),
        [
            (
                guest.name,
                guest.frontend,
                guest.state,
                guest.ssh_port,
                guest.stored_pages,
                None if guest.stored_bytes is None else f"{guest.stored_bytes / (1 << 20):.1f}",
                guest.detail or "",
            )
            for guest in found.guests
        ],
    )


def _store(store: dict[str, Any]) -> str:
    arena = store["arena"]
    saved = arena["deduplicated_bytes"] >> 20
    sharing = f", {saved} MiB saved by deduplication" if saved else ""
    return (
        f"store: kztmemd {store['version']}, pid {store['pid']}, codec {store['codec']}, "
        f"{store['persistent']}, "
        f"{arena['pages']} pages in {arena['allocated_bytes'] >> 20} "
        f"of {arena['limit_bytes'] >> 20} MiB{sharing}"
    ) + _spill(store.get("spill"))


def _spill(spill: dict[str, Any] | None) -> str:
    if spill is None:
        return ""
    taken, limit = (spill[f"{what}_bytes"] >> 20 for what in ("allocated", "limit"))
    return f", {spill['pages']} of them in {taken} of {limit} MiB of disk"
