# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of kztmemd."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kztmem.errors import BadInput
from kztmem.settings import (
    EPHEMERAL,
    PERSISTENT,
    ClientSettings,
    Settings,
    Spill,
    check_allocator,
    check_codec,
    check_dedup,
    check_memory,
    check_name,
    check_spill,
    check_swap,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DESCRIPTION = "Holds the swapped-out pages of this host's guests, compressed, in shared memory."

_EPILOG = """\
Guests reach it through DIR/clients/NAME/nbd.sock, an NBD export each; tools through DIR/api.sock
(HTTP: /v1/status, /v1/clients, /metrics, /openapi.json). Killed or stopped, it finds all pages
again when it is started with the same DIR; what --client made is remembered there as well.

Sizes are bytes or have a binary unit: 512MiB, 1GiB.

kztmemd bench store FILE... times the store on given pages; it has a --help of its own.

Exit codes: 0 stopped by SIGTERM (or, with --detach, serving), 2 bad input,
4 this host cannot do it, 130 interrupted.

examples:
  kztmemd --state ~/store --memory 512MiB --client a:1GiB
  kztmemd --state ~/store --memory 512MiB --client a:1GiB --detach
  kztmemd --state ~/store --remove
"""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One run of the command."""

    settings: Settings
    detach: bool
    remove: bool


def parse(argv: Sequence[str]) -> Invocation:
    """Understands the command line and the configuration file it may name.

    Raises `BadInput`; exits by itself for --help and for words argparse does not know.
    """
    args = _parser().parse_args(argv)
    state = _absolute(args.state, key="--state")
    sockets: Path | None = args.sockets
    memory: int | None = None
    spill: Spill | None = None
    codec: str | None = None
    persistent: str | None = None
    ephemeral: str | None = None
    user: str | None = None
    dedup: str | None = None
    clients: dict[str, ClientSettings] = {}
    if args.config is not None:
        # Pydantic takes a while to load, so only those who have a file wait for it.
        from kztmem.config import load  # noqa: PLC0415

        file = load(args.config)
        memory, codec, dedup, user = file.memory, file.codec, file.dedup, file.user
        persistent, ephemeral = file.persistent, file.ephemeral
        spill, clients = file.spill, file.client_settings()
        sockets = sockets or file.sockets
    if args.memory is not None:
        memory = check_memory(args.memory, key="--memory")
    if args.spill is not None:
        spill = check_spill(args.spill, key="--spill")
    if spill is not None and spill.path is not None:
        spill = replace(spill, path=_absolute(spill.path, key="--spill"))
    if args.codec is not None:
        codec = check_codec(args.codec, key="--codec")
    if args.persistent is not None:
        persistent = check_allocator(args.persistent, PERSISTENT, key="--persistent")
    if args.ephemeral is not None:
        ephemeral = check_allocator(args.ephemeral, EPHEMERAL, key="--ephemeral")
    if args.dedup is not None:
        dedup = check_dedup(args.dedup, key="--dedup")
    settings = Settings(
        state=state,
        sockets=state if sockets is None else _absolute(sockets, key="--sockets"),
        memory=memory,
        codec=codec,
        persistent=persistent,
        ephemeral=ephemeral,
        spill=spill,
        abandon_spilled=args.abandon_spilled,
        dedup=dedup,
        user=args.user or user,
        clients=clients | _clients(args.client),
    )
    return Invocation(settings=settings, detach=args.detach, remove=args.remove)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kztmemd",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="state directory: lock, clients, sockets, log; made if missing, mode 0700",
    )
    add(
        "--memory",
        metavar="SIZE",
        help="limit of the arena in /dev/shm, pages and index together; needed the first time",
    )
    add(
        "--spill",
        metavar="SIZE[,PATH]",
        help="a file of at most SIZE on a disk (by default DIR/spill) for pages that memory has no "
        "room for; none: no such file any more",
    )
    add(
        "--abandon-spilled",
        action="store_true",
        help="give up pages in a spill file that is not there any more; they read as errors",
    )
    add(
        "--codec",
        metavar="CODEC",
        help="lzo (the default), lz4, zstd:LEVEL or none; pages already held keep theirs",
    )
    add(
        "--persistent",
        metavar="ALLOCATOR",
        help="what holds pages that have to stay: zsmalloc (the default), xvmalloc or zbud; pages "
        "already held stay where they are",
    )
    add(
        "--ephemeral",
        metavar="ALLOCATOR",
        help="what holds pages that may vanish: zbud, which gives them up by whole frames",
    )
    add(
        "--dedup",
        metavar="MODE",
        help="with which pages a client's may share memory unless it says so itself: off (the "
        "default), client (its own) or domain:NAME (those of all that say so)",
    )
    add(
        "--client",
        action="append",
        default=[],
        metavar="NAME:SIZE",
        help="make this client with a swap device of SIZE unless it exists; may be repeated",
    )
    add("--sockets", type=Path, metavar="DIR", help="where sockets go instead: a short path")
    add("--config", type=Path, metavar="FILE", help="settings in TOML; options win over them")
    add(
        "--user",
        metavar="USER",
        help="when started as root: the user to serve as (default kztlab, if there is one)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--detach",
        action="store_true",
        help="return once it serves; a supervisor restarts it should it die",
    )
    mode.add_argument(
        "--remove",
        action="store_true",
        help="throw all pages away: remove arena, spill file and sockets of a stopped daemon",
    )
    add("--version", action=_Version)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from kztmem.version import version  # noqa: PLC0415

        print(f"kztmemd {version()}")
        parser.exit()


def _clients(options: Iterable[str]) -> dict[str, ClientSettings]:
    clients: dict[str, ClientSettings] = {}
    for option in options:
        name, colon, size = option.partition(":")
        if not colon:
            raise BadInput(f"{option!r} has no size", key="--client", hint="write NAME:SIZE")
        check_name(name, key="--client")
        client = ClientSettings(swap=check_swap(size, key="--client"))
        if clients.setdefault(name, client) != client:
            raise BadInput(f"{name!r} is given twice with different sizes", key="--client")
    return clients


def _absolute(path: Path, *, key: str) -> Path:
    """The same directory by its only name: the arena's name is a hash of it."""
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such home, a loop of links, a NUL
        raise BadInput(f"cannot use {str(path)!r}: {error}", key=key) from error
