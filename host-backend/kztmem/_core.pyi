# SPDX-License-Identifier: GPL-2.0-or-later
"""The Rust core's interface, kept by hand beside `crates/kzt-py`.

No call holds the GIL while it works in the store or waits. Sizes are bytes, times seconds unless a
name says otherwise, page numbers count from 0, and a page has 4096 bytes.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Literal, TypeAlias, TypedDict, final, type_check_only

__all__ = [
    "ArenaBusyError",
    "ArenaFormatError",
    "ArenaSpaceError",
    "Client",
    "ClientExistsError",
    "CorruptPageError",
    "DiskError",
    "NoClientError",
    "NoMemoryError",
    "NoSpaceError",
    "OvercommittedError",
    "Pool",
    "Server",
    "SocketError",
    "SpillError",
    "Store",
    "StoreError",
    "bench",
]

ObjectId: TypeAlias = tuple[int, int, int]

@type_check_only
class Recovery(TypedDict):
    """What was found in the arena when it was opened."""

    reason: Literal["new", "recovered", "reboot"]
    pools: int
    pages: int
    dropped: int
    abandoned: int
    seconds: float
    warnings: list[str]

@type_check_only
class SpillCounters(TypedDict):
    """Counted since the store was opened; the first three in pages."""

    written: int
    collected: int
    read: int
    write_errors: int
    read_errors: int

@type_check_only
class SpillUsage(TypedDict):
    """What the spill file takes of its disk, and what is in it."""

    limit_bytes: int
    allocated_bytes: int
    data_bytes: int
    pages: int
    counters: SpillCounters

@type_check_only
class Usage(TypedDict):
    """What the arena takes of its memory, in bytes of its file."""

    limit_bytes: int
    allocated_bytes: int
    data_bytes: int
    meta_bytes: int
    fragmentation_bytes: int
    spare_bytes: int
    pages: int
    duplicate_pages: int
    """Of `pages`: those whose bytes another one's block holds."""
    deduplicated_bytes: int
    """What blocks of their own would take. Clients are charged for it all the same."""
    spill: SpillUsage | None

@type_check_only
class Zbud(TypedDict):
    """Frames that two pages may share. The last two are counted since the store was opened."""

    zbud_curr_raw_pages: int
    """Frames."""
    zbud_curr_zpages: int
    """Pages in them."""
    zbud_buddied_count: int
    """Frames that have two."""
    zbud_cumul_zpages: int
    """Pages that were put there."""
    zbud_cumul_zbytes: int
    """Their bytes, compressed."""

@type_check_only
class Evictions(TypedDict):
    """Counted since the store was opened."""

    evicted_raw_pages: int
    """Frames that came free."""
    evicted_unbuddied_pages: int
    """Pages that were alone in their frame."""
    evicted_buddied_pages: int
    """Pages that shared it."""
    evicted_nodes: int
    """Parts of the index that held same-filled pages alone."""

@type_check_only
class Counters(TypedDict):
    """Counted since the pool was opened, in pages."""

    puts: int
    gets: int
    get_hits: int
    flushes: int
    flush_found: int
    failed_puts: int
    """Refused; of them `over_cap` and `over_reservation` for the client's cap and for what others
    have reserved, the rest for the memory limit."""
    over_cap: int
    over_reservation: int
    put_to_flush: int
    """Refused puts that flushed the page they were to replace."""
    evicted: int
    crc_errors: int
    io_errors: int
    spill_reads: int

@type_check_only
class Latency(TypedDict):
    """Service times of requests: `count` of them, and percentiles to within an eighth."""

    count: int
    p50_us: float
    p99_us: float
    p999_us: float

@type_check_only
class Latencies(TypedDict):
    put: Latency
    get: Latency
    flush: Latency

@type_check_only
class PoolStats(TypedDict):
    """What a pool holds, and what it has done."""

    stored_pages: int
    stored_bytes: int
    index_bytes: int
    same_filled_pages: int
    raw_pages: int
    spilled_pages: int
    spilled_bytes: int
    counters: Counters

@type_check_only
class TmemPool(PoolStats):
    """One of a tmem client's pools."""

    id: int | None
    """None for the one that the host's own devices use."""
    kind: Literal["persistent", "ephemeral", "shared"]
    uuid: tuple[int, int]

@type_check_only
class TmemClient(TypedDict):
    """A tmem client's terms, state and pools."""

    name: str
    weight: int
    cap_bytes: int | None
    reservation_bytes: int
    compress: bool
    frozen: bool
    persistent_bytes: int
    """Bytes of its persistent pages and their index: what cap and reservation are of."""
    ephemeral_bytes: int
    pools: list[TmemPool]

@type_check_only
class PortCounters(TypedDict):
    """What came in on a client's ports of a kind since it is served."""

    sessions: int
    frames: int
    ignored_frames: int
    damaged_frames: int
    skipped_bytes: int

@type_check_only
class Report(TypedDict):
    """What a guest's agent said last: up to 16 KiB of anything."""

    age_seconds: float
    session: int
    sequence: int
    content: bytes

@type_check_only
class ClientStats(PoolStats):
    """A served client's figures; those of a pool are of all its pools, the device's included."""

    persistent: PoolStats
    """Of the persistent pools that its guest has made, counters of those that are gone included."""
    ephemeral: PoolStats
    """Of the other ones, likewise."""
    pools: list[TmemPool]
    """Those that are there."""

    swap_bytes: int
    weight: int
    cap_bytes: int | None
    reservation_bytes: int
    charged_bytes: int
    """Its persistent pages and their index: what cap and reservation are of."""
    ephemeral_bytes: int
    """Its ephemeral ones and theirs."""
    connections: int
    latency: Latencies
    relay_counters: PortCounters
    tmem_counters: PortCounters
    report: Report | None

@type_check_only
class BenchRow(TypedDict):
    """One engine's figures. Times are µs for each page; what the engine does not have is None."""

    engine: Literal["raw", "store", "zram"]
    codec: str
    alloc: str | None
    threads: int
    warm: bool
    put_us: float
    get_us: float
    put_p99_us: float
    get_p99_us: float
    logical_bytes: int
    data_bytes: int
    fragmentation_bytes: int | None
    meta_bytes: int | None
    same_filled: int
    duplicates: int

@type_check_only
class Bench(TypedDict):
    """Figures of all engines on the same pages."""

    pages: int
    available: int
    """Pages of the files; more than `pages` if that was limited."""
    incompressible: dict[str, int]
    """By codec: pages that it does not shrink below seven eighths."""
    without_zram: list[str]
    rows: list[BenchRow]

class StoreError(Exception):
    """The page store can't do what was asked."""

class ArenaBusyError(StoreError):
    """Another process has the arena open."""

class ArenaFormatError(StoreError):
    """The file is no arena this build reads. It is left alone."""

class ArenaSpaceError(StoreError):
    """The memory asked for can't be had: out of range, less than is held, or the disk is full."""

class ClientExistsError(StoreError):
    """The client is being served already."""

class NoClientError(StoreError):
    """There is no such client, or no longer."""

class SocketError(StoreError):
    """The socket can't be made: somebody listens there, or the system refuses."""

class NoMemoryError(StoreError):
    """The store is full; the page is new."""

class NoSpaceError(StoreError):
    """The store is full; the page's old contents were flushed."""

class CorruptPageError(StoreError):
    """The stored page is damaged."""

class DiskError(StoreError):
    """The disk with the spill file can't be read. The page stays there."""

class OvercommittedError(StoreError):
    """There is not so much memory to be reserved."""

class SpillError(StoreError):
    """The spill file is missing with pages in it, not the arena's, or can't have that size."""

@final
class Server:
    """A store that serves its clients' sockets. Methods may be called from any thread."""

    def __new__(
        cls,
        *,
        arena: str | PathLike[str],
        memory: int,
        codec: str,
        persistent: str = "zsmalloc",
        spill: tuple[str | PathLike[str], int] | None = None,
        abandon_spilled: bool = False,
    ) -> Server:
        """Open the arena, or recover what it holds.

        `persistent` is what holds the pages of persistent pools from now on: zsmalloc, xvmalloc or
        zbud. Those that are there already stay where they are.

        `spill` is a file on a disk, for pages that memory has no room for, and its most bytes. With
        pages in a file that is not there it is a `SpillError`, unless they are `abandon_spilled`.

        Raises `ArenaBusyError`, `ArenaFormatError`, `ArenaSpaceError`, `SpillError` or another
        `StoreError`, and `ValueError` for an unknown codec or allocator.
        """

    @property
    def recovery(self) -> Recovery: ...
    def add_client(
        self,
        name: str,
        swap: int,
        *,
        dedup: str,
        weight: int,
        cap: int | None,
        reservation: int,
        nbd: str | PathLike[str],
        relay: str | PathLike[str],
        vhost: str | PathLike[str],
        tmem: str | PathLike[str],
        ctl: str | PathLike[str],
    ) -> None:
        """Serve the client's swap device of `swap` bytes, and its guest's pools, on new sockets.

        `nbd` speaks NBD, `relay` the same in the frames of a virtio-serial port, and `vhost` is the
        backend of a vhost-user block device. `tmem` takes what the guest's kernel asks for, `ctl`
        the reports of the guest's agent. With which pages the client's may share memory, `dedup`
        says: `off`, `client` (its own) or `domain:NAME` (those of all clients that say so). What is
        said first of a client holds as long as the arena is open. `weight`, `cap` and `reservation`
        are as for `settle`.

        Raises `ClientExistsError`, `SocketError`, `OvercommittedError`, `StoreError` for a bad
        name or size, and `ValueError` for an unknown `dedup`.
        """

    def settle(self, name: str, *, weight: int, cap: int | None, reservation: int) -> None:
        """Settle anew what a client that is served may have; pages that it has are not touched.

        `cap` and `reservation` are bytes of persistent pages and their index.

        Raises `NoClientError`, and `OvercommittedError` if there is not so much to be reserved.
        """

    def remove_client(self, name: str) -> None:
        """Close the client's connections and destroy its pool, served or left behind.

        Raises `NoClientError`.
        """

    def clients(self) -> list[str]:
        """Name the clients that are served."""

    def pools(self) -> list[str]:
        """Name the clients that have a pool, served or not."""

    def status(self) -> Usage: ...
    def zbud(self) -> Zbud: ...
    def evictions(self) -> Evictions: ...
    def pin(self) -> None:
        """Lock the arena in memory, now and as it grows. Raises `OSError` beyond the limits."""

    def client(self, name: str) -> ClientStats:
        """Figures of a client that is served. Raises `NoClientError`."""

    def shutdown(self, grace: float) -> None:
        """Serve what has arrived, for at most `grace` seconds, and end every thread.

        The sockets are unlinked and the pools stay in the arena. The arena is closed when the
        server is no longer referenced.
        """

@final
class Store:
    """The store without sockets, to test against a model."""

    def __new__(
        cls,
        *,
        arena: str | PathLike[str],
        memory: int,
        codec: str,
        persistent: str = "zsmalloc",
        spill: tuple[str | PathLike[str], int] | None = None,
        abandon_spilled: bool = False,
    ) -> Store:
        """Open the arena like `Server`."""

    @property
    def recovery(self) -> Recovery: ...
    def client(
        self,
        name: str,
        *,
        weight: int = 1,
        cap: int | None = None,
        reservation: int = 0,
        compress: bool = True,
        dedup: str = "off",
    ) -> Client:
        """The client of that name, found again or made, on these terms from now on.

        `cap` and `reservation` are bytes of persistent pages and their index; `dedup` is as for
        `Server.add_client`. Raises `StoreError` for a bad name and for reservations that exceed the
        memory together, and `ValueError`.
        """

    def remove_client(self, name: str) -> None:
        """Drop a client with all its pools. Raises `NoClientError`."""

    def authorize(self, uuid_lo: int, uuid_hi: int, name: str) -> None:
        """Let a client share the pool of that UUID."""

    def pool(self, client: str) -> Pool:
        """The client's persistent pool: found again, or made."""

    def clients(self) -> list[str]:
        """Name the clients that have a pool."""

    def destroy_pool(self, client: str) -> None:
        """Drop a pool with its pages. Raises `NoClientError`."""

    def usage(self) -> Usage: ...
    def maintain(self) -> None:
        """One round of upkeep, such as a server makes in the background."""

    def close(self) -> None:
        """Give the arena up; it is closed once no client or pool is referenced any more."""

@final
class Client:
    """A client as a guest's tmem operations meet it.

    They return what a guest is answered: docs/semantics.md has the numbers. All else is the host's.
    """

    def new_pool(self, flags: int, uuid_lo: int, uuid_hi: int) -> int: ...
    def destroy_pool(self, id: int) -> int: ...
    def put_page(self, id: int, object: ObjectId, index: int, page: bytes) -> int: ...
    def get_page(self, id: int, object: ObjectId, index: int) -> tuple[int, bytes | None]:
        """The answer; with 1, the page."""

    def flush_page(self, id: int, object: ObjectId, index: int) -> int: ...
    def flush_object(self, id: int, object: ObjectId) -> int: ...
    def freeze(self) -> None:
        """Take no new page until it is thawed; the last one has been taken when this returns."""

    def thaw(self) -> None: ...
    def set_weight(self, weight: int) -> None: ...
    def set_cap(self, cap: int | None) -> None: ...
    def set_compress(self, compress: bool) -> None: ...
    def stats(self) -> TmemClient: ...

@final
class Pool:
    """A client's pool. Calls raise `NoClientError` once it is destroyed."""

    def put(self, object: ObjectId, index: int, page: bytes) -> None:
        """Store a page. Raises `NoMemoryError` (new page) or `NoSpaceError` (old page flushed)."""

    def get(self, object: ObjectId, index: int) -> bytes | None:
        """Fetch a page; None when there is none. Raises `CorruptPageError`."""

    def update(self, object: ObjectId, index: int, start: int, data: bytes) -> None:
        """Change a part of a page, all or nothing; an absent page counts as zeroes."""

    def flush(self, object: ObjectId, index: int) -> bool:
        """Drop a page; whether there was one."""

    def flush_range(self, object: ObjectId, first: int, count: int) -> int:
        """Drop pages; how many there were."""

    def flush_object(self, object: ObjectId) -> int:
        """Drop an object's pages; how many there were."""

    def runs(self, object: ObjectId, first: int, count: int) -> list[tuple[int, bool]]:
        """Lengths of runs of pages that cover the range, and whether they are stored."""

    def stats(self) -> PoolStats: ...

def bench(
    files: Sequence[str | PathLike[str]],
    *,
    codecs: Sequence[str],
    allocators: Sequence[str],
    threads: Sequence[int],
    repetitions: int,
    limit: int,
    folder: str | PathLike[str],
    progress: Callable[[str, int, int], object],
) -> Bench:
    """Time puts and gets of at most `limit` pages of the files, with arenas in `folder`.

    `progress` is told what begins, how many parts are done and how many there are. Signals are
    seen meanwhile.

    Raises `OSError` for a file, `ValueError` for no pages or an unknown name, or a `StoreError`.
    """
