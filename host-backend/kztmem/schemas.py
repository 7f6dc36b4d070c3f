# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API's bodies. The OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from kztmem.config import Dedup, Name, Swap, TermsConfig
from kztmem.settings import ClientSettings


class ClientRequest(TermsConfig):
    """A client to be made."""

    name: Name = Field(description="`[a-z][a-z0-9-]{0,30}`", examples=["web-1"])
    swap: Swap = Field(
        description="Size of its swap device: bytes, or text with a binary unit; whole pages.",
        examples=["1GiB", 1 << 30],
    )
    dedup: Dedup | None = Field(
        None,
        description="With which pages its may share memory: `off`, `client` (its own) or "
        "`domain:NAME` (those of all clients that say so). Without it as the daemon says.",
        examples=["client", "domain:lab"],
    )

    def settings(self) -> ClientSettings:
        """What is asked for."""
        return ClientSettings(swap=self.swap, dedup=self.dedup, terms=self.terms())


class ClientChange(TermsConfig):
    """What a client shall be like; what is left out stays as it is."""

    swap: Swap | None = Field(None, description="Must be the size it has, if given.")
    dedup: Dedup | None = Field(None, description="Must be what it was made with, if given.")


class _Answer(BaseModel):
    """Base of what the daemon says: a field that is not described here is a bug."""

    model_config = ConfigDict(extra="forbid")


class Counters(_Answer):
    """Pages since the daemon started, in tmem's words."""

    puts: int = Field(description="Pages stored.")
    gets: int = Field(description="Pages asked for.")
    get_hits: int = Field(description="Pages asked for that were there.")
    flushes: int = Field(description="Pages to be forgotten, there or not.")
    flush_found: int = Field(description="Pages forgotten that were there.")
    failed_puts: int = Field(
        description="Pages refused: for the two causes that follow, else for lack of memory."
    )
    over_cap: int = Field(description="Pages refused for the client's cap.")
    over_reservation: int = Field(description="Pages refused for what others have reserved.")
    put_to_flush: int = Field(description="Pages refused whose predecessor was forgotten for it.")
    evicted: int = Field(description="Ephemeral pages that had to give way.")
    crc_errors: int = Field(description="Pages that came back damaged: an alarm.")
    io_errors: int = Field(description="Pages that could not be read from the disk.")
    spill_reads: int = Field(description="Pages read from the disk.")


class Latency(_Answer):
    """Time from a request's arrival to its answer, inside the daemon, since it started."""

    count: int
    p50_us: float
    p99_us: float
    p999_us: float


class Latencies(_Answer):
    """By operation."""

    put: Latency
    get: Latency
    flush: Latency


class PortCounters(_Answer):
    """What came in on ports of a kind since the daemon started."""

    sessions: int = Field(description="Sessions that the guest began.")
    frames: int = Field(description="Frames of a session that were served.")
    ignored_frames: int = Field(description="Frames of sessions that were over.")
    damaged_frames: int = Field(description="Frames that ended a session: not what had to follow.")
    skipped_bytes: int = Field(description="Bytes passed over in search of a session's beginning.")


class PoolFigures(_Answer):
    """What pools hold."""

    stored_pages: int = Field(description="Pages held.")
    stored_bytes: int = Field(description="In memory, compressed, with the blocks' headers.")
    index_bytes: int = Field(description="Of its index.")
    same_filled_pages: int = Field(description="Of the stored: one word repeated, no bytes held.")
    raw_pages: int = Field(description="Of the stored: did not shrink, kept as they are.")
    spilled_pages: int = Field(description="Of the stored: on the disk.")
    spilled_bytes: int = Field(description="Of the disk, compressed, with the blocks' headers.")
    counters: Counters


class Pool(PoolFigures):
    """A pool that a guest has made."""

    id: int = Field(description="Its number, 0 to 15.")
    kind: Literal["persistent", "ephemeral", "shared"]
    uuid: tuple[int, int] = Field(description="What it was made with.")


class Guest(_Answer):
    """What the guest's agent said last. Nothing in it has been checked."""

    age_seconds: float = Field(description="Time since it said so.")
    stats: dict[str, Any] = Field(description="As the agent sent it.")


class Client(PoolFigures):
    """A client as it is now, with the figures of all its pools, the device's included."""

    name: str
    swap_bytes: int = Field(description="Size of its swap device.")
    dedup: str = Field(description="With which pages its may share memory.")
    nbd: str = Field(description="Path of its NBD socket; exports `` and `swap`.")
    relay: str = Field(description="Path of the socket of the relay port to the same device.")
    vhost: str = Field(description="Path of the vhost-user-blk socket to the same device.")
    tmem: str = Field(description="Path of the socket of the port of the guest's kernel.")
    ctl: str = Field(description="Path of the socket of the port for the agent's reports.")
    weight: int = Field(description="Its share where clients compete for memory.")
    cap_bytes: int | None = Field(description="Most that it may be charged; None: no such limit.")
    reservation_bytes: int = Field(description="Kept for this client alone.")
    charged_bytes: int = Field(
        description="Its persistent pages and their index: what cap and reservation are of."
    )
    ephemeral_bytes: int = Field(description="Its ephemeral pages and their index.")
    connections: int = Field(description="Open connections to device and pools.")
    persistent: PoolFigures = Field(
        description="Persistent pools that its guest has made; with counters of those gone."
    )
    ephemeral: PoolFigures = Field(description="Likewise its ephemeral and shared ones.")
    pools: list[Pool] = Field(description="Its guest's pools that are there.")
    latency: Latencies
    relay_counters: PortCounters
    tmem_counters: PortCounters
    guest: Guest | None = Field(description="None: no agent has reported yet.")


class Clients(_Answer):
    """All clients."""

    clients: list[Client]


class Arena(_Answer):
    """The shared memory that holds everything."""

    path: str
    limit_bytes: int = Field(description="What it may occupy at most.")
    allocated_bytes: int = Field(description="Blocks of the file; never more than the limit.")
    data_bytes: int = Field(description="Compressed pages with the headers of their blocks.")
    meta_bytes: int = Field(description="Index and headers.")
    fragmentation_bytes: int = Field(description="Lost between blocks.")
    spare_bytes: int = Field(description="Kept ready for what comes next.")
    pages: int = Field(description="Pages stored, in memory or on the disk.")
    duplicate_pages: int = Field(description="Of these: their bytes are another page's block.")
    deduplicated_bytes: int = Field(
        description="What blocks of their own would take; clients are charged for it all the same."
    )


class Zbud(_Answer):
    """Frames that two pages may share, as ephemeral ones do, in the words of zcache."""

    zbud_curr_raw_pages: int = Field(description="Frames.")
    zbud_curr_zpages: int = Field(description="Pages in them.")
    zbud_buddied_count: int = Field(description="Frames that have two.")


class ZbudCounters(_Answer):
    """The same since the daemon started."""

    zbud_cumul_zpages: int = Field(description="Pages put into frames that two may share.")
    zbud_cumul_zbytes: int = Field(description="Their bytes, compressed.")


class AllZbud(Zbud, ZbudCounters):
    """What is there, and what was."""


class Evictions(_Answer):
    """What ephemeral pages had to give since the daemon started."""

    evicted_raw_pages: int = Field(description="Frames that came free by eviction.")
    evicted_unbuddied_pages: int = Field(description="Pages evicted that were alone in a frame.")
    evicted_buddied_pages: int = Field(description="Pages evicted that shared a frame.")
    evicted_nodes: int = Field(
        description="Parts of the index evicted that held same-filled pages alone."
    )


class SpillCounters(_Answer):
    """Pages, and errors, since the daemon started."""

    written: int = Field(description="Pages written, those moved within the file included.")
    collected: int = Field(description="Of these, pages moved to make room in the file.")
    read: int = Field(description="Pages read.")
    write_errors: int = Field(description="Failed writes: their pages stayed in memory.")
    read_errors: int = Field(description="Failed reads.")


class Spill(_Answer):
    """The file on a disk for what memory has no room for."""

    path: str
    limit_bytes: int = Field(description="What it may occupy at most.")
    allocated_bytes: int = Field(description="What it occupies of the disk.")
    data_bytes: int = Field(description="Compressed pages with the headers of their blocks.")
    pages: int = Field(description="Pages in it.")
    counters: SpillCounters


class Recovery(_Answer):
    """What the daemon found when it started."""

    reason: str = Field(description="new, recovered, reboot, or lost: the arena was gone.")
    pools: int = Field(description="Pools found.")
    pages: int = Field(description="Pages found.")
    seconds: float = Field(description="Time it took.")
    dropped: int = Field(description="Entries that were damaged, or abandoned.")
    abandoned: int = Field(description="Of these, pages in a spill file that was not there.")
    losses: int = Field(description="How often the arena of this state directory was gone.")


class Status(_Answer):
    """The daemon as it is now."""

    version: str
    pid: int
    supervisor_pid: int | None = Field(description="None: nobody restarts this daemon.")
    user: str
    uptime_seconds: float
    codec: str
    persistent: str = Field(description="What holds pages from now on that have to stay.")
    ephemeral: str = Field(description="What holds pages that may vanish.")
    dedup: str = Field(description="What goes for clients that say nothing of their own.")
    arena: Arena
    zbud: AllZbud
    evictions: Evictions
    spill: Spill | None = Field(description="None: the store has no disk.")
    recovery: Recovery
    warnings: list[str]
    clients: list[Client]


class Error(_Answer):
    """Why not."""

    error: str
    key: str | None = Field(description="What it is about.")
    hint: str | None = Field(description="What to do about it.")


def schemas() -> dict[str, Any]:
    """JSON schemas of all bodies by name, with references as OpenAPI wants them."""
    models: list[tuple[type[BaseModel], Any]] = [
        (ClientRequest, "validation"),
        (ClientChange, "validation"),
        (Client, "serialization"),
        (Clients, "serialization"),
        (Status, "serialization"),
        (Error, "serialization"),
    ]
    _, document = models_json_schema(models, ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = document["$defs"]
    return definitions
