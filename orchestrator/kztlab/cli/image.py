# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztlab image`: build, list and remove guest images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab import image
from kztlab.cli.output import emit, json_option, table
from kztlab.cli.progress import showing
from kztlab.errors import BadInput
from kztlab.lab import record
from kztlab.places import Places
from kztlab.spec import format_size

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action")
    build = actions.add_parser("build", help="build an image unless the cache has it")
    build.add_argument("name", metavar="IMAGE", nargs="?", default="debian-trixie")
    listing = actions.add_parser("ls", help="list the images in the cache")
    remove = actions.add_parser("rm", help="remove all builds of an image that no lab uses")
    remove.add_argument("name", metavar="IMAGE")
    for each in (build, listing, remove):
        json_option(each)


def run(args: argparse.Namespace) -> int:
    places = Places.default()
    match args.action:
        case "build":
            return _build(args, places)
        case "ls":
            return _list(args, places)
        case _:
            return _remove(args, places)


def _build(args: argparse.Namespace, places: Places) -> int:
    with showing(args) as progress:
        built = image.ensure(
            args.name, places, lambda step, elapsed: progress.step(args.name, step, elapsed)
        )
        progress.done(args.name, "built")
    if args.json:
        emit(_facts(built))
    else:
        print(built.folder)
    return 0


def _list(args: argparse.Namespace, places: Places) -> int:
    images = image.list_images(places)
    if args.json:
        emit({"images": [_facts(each) for each in images]})
    else:
        rows = [(each.name, each.hash, format_size(each.size >> 20 << 20)) for each in images]
        table(("image", "hash", "size"), rows)
    return 0


def _remove(args: argparse.Namespace, places: Places) -> int:
    users = [
        lab.lab
        for name in record.names(places)
        if (lab := record.find(places, name)) is not None
        and any(guest.spec.image == args.name for guest in lab.guests.values())
    ]
    if users:
        raise BadInput(
            f"the image {args.name} is in use by {', '.join(users)}",
            hint="; ".join(f"kztlab down {user}" for user in users),
        )
    gone = image.remove(args.name, places)
    if args.json:
        emit({"removed": [_facts(each) for each in gone]})
    else:
        for each in gone:
            print(f"removed {each.folder}")
    return 0


def _facts(built: image.Image) -> dict[str, object]:
    return {
        "name": built.name,
        "hash": built.hash,
        "folder": built.folder,
    }
