# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file: TOML, the same settings as the options.

memory = "512MiB"
spill = "4GiB"
codec = "lzo"
dedup = "client"

[clients.a]
swap = "1GiB"
weight = 2
cap = "256MiB"
reservation = "64MiB"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from kztmem.errors import BadInput
from kztmem.settings import (
    EPHEMERAL,
    PERSISTENT,
    ClientSettings,
    Spill,
    Terms,
    check_allocator,
    check_bound,
    check_codec,
    check_dedup,
    check_memory,
    check_name,
    check_spill,
    check_swap,
    check_weight,
)
from kztmem.validation import Strict, checked, problems


def _memory(size: str | int) -> int:
    return check_memory(size, key="memory")


def _spill(spec: str | int) -> Spill:
    return check_spill(spec, key="spill")


def _codec(name: str) -> str:
    return check_codec(name, key="codec")


def _persistent(name: str) -> str:
    return check_allocator(name, PERSISTENT, key="persistent")


def _ephemeral(name: str) -> str:
    return check_allocator(name, EPHEMERAL, key="ephemeral")


def _dedup(mode: str) -> str:
    return check_dedup(mode, key="dedup")


def _weight(weight: int) -> int:
    return check_weight(weight, key="weight")


def _bound(size: str | int) -> int:
    return check_bound(size, key="cap")


def _swap(size: str | int) -> int:
    return check_swap(size, key="swap")


def _name(name: str) -> str:
    return check_name(name, key="name")


Memory = Annotated[int, BeforeValidator(checked(_memory, str, int))]
SpillSpec = Annotated[
    Spill,
    BeforeValidator(checked(_spill, str, int)),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]}, mode="validation"),
]
Codec = Annotated[str, BeforeValidator(checked(_codec, str))]
Persistent = Annotated[str, BeforeValidator(checked(_persistent, str))]
Ephemeral = Annotated[str, BeforeValidator(checked(_ephemeral, str))]
Dedup = Annotated[str, BeforeValidator(checked(_dedup, str))]
Swap = Annotated[
    int,
    BeforeValidator(checked(_swap, str, int)),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]}, mode="validation"),
]
Weight = Annotated[int, BeforeValidator(checked(_weight, int))]
Bound = Annotated[
    int,
    BeforeValidator(checked(_bound, str, int)),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]}, mode="validation"),
]
Name = Annotated[str, BeforeValidator(checked(_name, str))]


class TermsConfig(Strict):
    """What a client may take of the memory."""

    weight: Weight | None = Field(
        None,
        description="Its share where clients compete for memory: who has most ephemeral pages for "
        "its weight loses some first. Without it 1.",
        examples=[2],
    )
    cap: Bound | None = Field(
        None,
        description="Most bytes that its persistent pages and their index may take, or `none`.",
        examples=["256MiB", "none"],
    )
    reservation: Bound | None = Field(
        None,
        description="Bytes of them that are kept for this client alone, or `none`.",
        examples=["64MiB", "none"],
    )

    def terms(self) -> Terms:
        """What is said."""
        return Terms(weight=self.weight, cap=self.cap, reservation=self.reservation)


class ClientConfig(TermsConfig):
    """One client that must exist."""

    swap: Swap = Field(description="Size of its swap device.")
    dedup: Dedup | None = Field(None, description="As below, for this client alone.")


class Config(Strict):
    """The file's content; None where it says nothing."""

    memory: Memory | None = Field(None, description="Limit of the arena, pages and index together.")
    spill: SpillSpec | None = Field(
        None, description="SIZE or SIZE,PATH of a file on a disk for what memory has no room for."
    )
    codec: Codec | None = Field(None, description="lzo, lz4, zstd:LEVEL or none.")
    persistent: Persistent | None = Field(
        None, description="What holds pages that have to stay: zsmalloc, xvmalloc or zbud."
    )
    ephemeral: Ephemeral | None = Field(None, description="What holds pages that may vanish: zbud.")
    dedup: Dedup | None = Field(
        None,
        description="With which pages those of clients that say nothing may share memory: "
        "off, client (their own) or domain:NAME.",
    )
    sockets: Path | None = Field(None, description="Directory of the sockets.")
    user: str | None = Field(None, description="When started as root: the user to serve as.")
    clients: dict[Name, ClientConfig] = Field(default_factory=dict, description="Clients by name.")

    def client_settings(self) -> dict[str, ClientSettings]:
        """The clients by name."""
        return {
            name: ClientSettings(swap=client.swap, dedup=client.dedup, terms=client.terms())
            for name, client in self.clients.items()
        }


def load(path: Path) -> Config:
    """Reads a configuration file; raises `BadInput` that names file, keys and remedies."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", key="--config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path} is not TOML: {error}", key="--config") from error
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"{path}: {problem}" for problem in problems(error, Config))
        raise BadInput(lines) from error
