# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of a cluster.yaml: every key, its type, its default and what it means.

The descriptions and defaults here are what editors show (`json_schema`) and what the reference
documentation says (`reference`); there is no second list of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from kztlab.spec.consistency import WORKLOAD_HEADROOM, InconsistentError, contradictions, expand
from kztlab.spec.fields import (
    AbsolutePath,
    Access,
    Codec,
    Content,
    Dedup,
    Duration,
    Ephemeral,
    Frontend,
    Image,
    Name,
    Persistent,
    Size,
    error,
    lasting,
    sized,
    whole_seconds,
)
from kztlab.spec.problem import Finding, Origin, Problem
from kztlab.spec.units import GIB, KIB, MIB, TIB

_DAY = 24 * 3600.0
_PAGE = 4 * KIB
_MAX_SWAP = _PAGE << 32  # a page's number on its swap device has 32 bits


class Section(BaseModel):
    """A mapping of the file: its keys are known, its values have the type they are written with."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StoreSpec(Section):
    """The page store that all guests of the lab share."""

    memory: Annotated[Size, sized(4 * MIB, 16 * TIB, unit=MIB)] = Field(
        default=512 * MIB,
        description="Host memory the store may use for pages and their index. At least 4MiB.",
    )
    codec: Codec = Field(
        default="lzo",
        description="How pages are compressed: `lzo`, `lz4`, `zstd:LEVEL` (-7 to 19; `zstd` is"
        " level 3) or `none`.",
    )
    persistent: Persistent = Field(
        default="zsmalloc",
        description="What holds pages that have to stay, as those of swap devices. `zsmalloc`: "
        "size classes, the densest for many pages; `xvmalloc`: blocks of any size side by side, "
        "which loses less where there are few; `zbud`: two pages in 4KiB.",
    )
    ephemeral: Ephemeral = Field(
        default="zbud",
        description="What holds pages that may vanish: `zbud`, which alone can give up the oldest "
        "of them by whole frames.",
    )
    dedup: Dedup = Field(
        default="off",
        description="Whose pages share memory if they are the same: `off`: nobody's; `client`: "
        "each guest's own; `domain:NAME`: those of all guests in this domain, also of other labs "
        "that use the same store. Guests of one domain can find out, by the time a page takes, "
        "whether another one has it.",
    )
    spill: Annotated[Size, sized(2 * MIB, TIB, unit=MIB)] | None = Field(
        default=None,
        description="Disk the store may use for pages that `memory` has no room for, in its state "
        "directory. At least 2MiB.",
    )
    socket: AbsolutePath | None = Field(
        default=None,
        description="API socket of a running kztmemd to join, an absolute path. The lab then "
        "starts no store of its own, and `memory`, `spill`, `codec`, `persistent` and `ephemeral` "
        "are those of the store it joins.",
    )
    ratio: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] = Field(
        default=3.0,
        description="Compression ratio to count on. A lab whose swap devices hold more than "
        "`memory` times `ratio` and `spill` is refused, because a full store cannot take a guest's "
        "pages.",
    )
    overcommit: bool = Field(
        default=False, description="Start the lab even if its swap devices exceed that."
    )


class TmemSpec(Section):
    """With frontend `tmem`: how the guest's kernel asks the store, by its module's parameters."""

    put_wait: bool = Field(
        default=False,
        description="Whether clean pages of files wait for their turn when there are too many on "
        "their way to the store. Otherwise they are dropped, and read from the disk if they are "
        "wanted again.",
    )
    admit: Annotated[int, Field(ge=0, le=2)] = Field(
        default=1,
        description="Which time a clean page of a file goes to the store as it leaves the guest's "
        "memory: the 1st, or the 2nd, which spares what is read once. 0: never.",
    )
    writeback: bool = Field(
        default=True,
        description="Whether pages are swapped out as to a disk, many at a time. Otherwise each "
        "waits for the store's answer.",
    )
    timeout: Annotated[Duration, lasting(0.1, 3600)] = Field(
        default=10.0,
        description="How long the store may owe an answer until the kernel begins another "
        "session. 100ms to 1h.",
    )
    slots: Annotated[int, Field(ge=16, le=65536)] = Field(
        default=256,
        description="Pages that can be under way at once. Each takes a page of the guest's "
        "memory. 16 to 65536.",
    )


class GuestSpec(Section):
    """A guest, or several that are alike."""

    count: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="How many such guests. Two guests `web` are named `web-1` and `web-2`; "
        "a single one keeps its plain name. 1 to 64.",
    )
    memory: Annotated[Size, sized(64 * MIB, 16 * TIB, unit=MIB)] = Field(
        default=192 * MIB, description="The guest's RAM, whole MiB. At least 64MiB."
    )
    vcpus: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Virtual CPUs. 1 to 64."
    )
    frontend: Frontend = Field(
        default="nbd",
        description="Where the guest swaps to. `nbd`: the page store, through QEMU's NBD client; "
        "`relay`: the same store, through kzt-agent in the guest and a virtio-serial port; "
        "`vhost-user-blk`: the same store, which serves the guest's virtio queues itself; "
        "`auto`: the last of these if the host's QEMU can do that, else `nbd`; "
        "`tmem`: the same store, which the guest's kernel asks itself, for a swap device on the "
        "host that takes what the store refuses. "
        "The others are baselines to compare with: `disk`: a file on the host; `zram`: compressed "
        "memory of the guest's own; `zswap`: such memory in front of `disk`; `none`: no swap.",
    )
    image: Image = Field(
        default="debian-trixie",
        description="Image to boot. With frontend `tmem` or `zswap`, by default "
        "`debian-trixie-tmem`, whose kernel has them.",
    )
    cleancache: bool | None = Field(
        default=None,
        description="With frontend `tmem`: whether the store also gets clean pages of files that "
        "the guest has no memory for. By default it does.",
    )
    tmem: TmemSpec | None = Field(
        default=None,
        description="With frontend `tmem`: how the guest's kernel asks the store.",
    )
    swap: Annotated[Size, sized(MIB, _MAX_SWAP, unit=_PAGE)] = Field(
        default=GIB,
        description="Size of the swap device, a multiple of 4KiB. Frontend `none` has no use "
        "for it.",
    )
    weight: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=1,
        description="The guest's share of the store: when its memory is short, who has most "
        "ephemeral pages for its weight loses some first. What is swapped out is not ephemeral. "
        "1 to 65535.",
    )
    cap: Annotated[Size, sized(MIB, 16 * TIB)] | None = Field(
        default=None,
        description="Most bytes of the store that each such guest's pages, compressed, and their "
        "index may take in memory. What would be more is refused with ENOSPC: the guest keeps the "
        "page, and goes on trying as long as it has free swap. At least 1MiB.",
    )
    reservation: Annotated[Size, sized(MIB, 16 * TIB)] | None = Field(
        default=None,
        description="Bytes of the store that are kept for each such guest alone; others are "
        "refused what would touch them. At least 1MiB, all together eight ninths of the store's "
        "`memory`: the rest is for what allocators waste.",
    )
    workload_memory_max: Annotated[Size, sized(8 * MIB, 16 * TIB)] | None = Field(
        default=None,
        description="`memory.max` of the cgroup that workloads run in. By default what the "
        "guest has, less one and a half times its min_free_kbytes and "
        f"{WORKLOAD_HEADROOM // MIB}MiB.",
    )
    boot_timeout: Annotated[Duration, lasting(1, _DAY)] = Field(
        default=300.0, description="How long the guest may take until it is ready. 1s to 24h."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_kernel_for_its_frontend(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("frontend") in {"tmem", "zswap"}:
            return {"image": "debian-trixie-tmem"} | data
        return data

    @property
    def swap_size(self) -> int:
        """Bytes of swap the guest has."""
        return 0 if self.frontend == "none" else self.swap

    @property
    def uses_store(self) -> bool:
        """Whether the guest swaps into the page store."""
        return self.frontend in {"auto", "nbd", "relay", "vhost-user-blk", "tmem"}

    @property
    def relies_on_store(self) -> bool:
        """Whether the guest has nowhere else to swap to when the store is full."""
        return self.uses_store and self.frontend != "tmem"


class AnonSpec(Section):
    """The built-in workload: fills anonymous memory, touches it again and verifies every page."""

    size: Annotated[Size, sized(MIB, 16 * TIB, unit=_PAGE)] = Field(
        description="Memory to fill, a multiple of 4KiB."
    )
    content: Content = Field(
        default="mixed",
        description="What the pages hold. `real`: pages of files below `corpus`; `text`: words; "
        "`zero`: zeroes; `random`: nothing a codec could shrink; `mixed`: some of each.",
    )
    passes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1, description="How often all pages are touched and verified after the fill."
    )
    access: Access = Field(
        default="sequential",
        description="Order of the touches: `sequential`, `random` (each page once a pass) or "
        "`zipf` (some pages far more often than others).",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = Field(
        default=1, description="Seed of contents and order: the same seed, the same run."
    )
    corpus: AbsolutePath = Field(
        default="/usr/lib",
        description="Folder in the guest whose files `content: real` takes its pages from.",
    )


class FilesSpec(Section):
    """The built-in workload on files: several processes change the same ones by write, mmap,
    O_DIRECT, truncate, holes and renames, and verify every page they read."""

    size: Annotated[Size, sized(MIB, 16 * TIB, unit=_PAGE)] = Field(
        description="Of all files together, a multiple of 4KiB. They are in the guest's /root, in "
        "a folder with the workload's name, and stay."
    )
    files: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=16, description="How many files. 1 to 1024."
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="How many processes. 1 to 64."
    )
    duration: Annotated[Duration, lasting(1, 7 * _DAY), whole_seconds()] = Field(
        default=10.0,
        description="How long they work on the files once these have been created, in whole "
        "seconds. 1s to 168h. Creating them, and reading all once more at the end, comes on top.",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = Field(
        default=1,
        description="Seed of contents and operations. The processes decide the order.",
    )


TASKS = ("anon", "files", "command")


class WorkloadSpec(Section):
    """Something to run in guests: one of `anon`, `files` and `command`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [task]} for task in TASKS]})

    name: Name = Field(description="Names the workload in results. Unique in the file.")
    on: Annotated[list[str], Field(min_length=1)] = Field(
        description="Where it runs: names of guests as in `guests` (all of that count) or single "
        "ones such as `web-2`."
    )
    anon: AnonSpec | None = Field(default=None, description="The built-in memory workload.")
    files: FilesSpec | None = Field(default=None, description="The built-in workload on files.")
    command: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="A shell command; exit status 0 is success."
    )
    stagger: Annotated[Duration, lasting(0, _DAY)] = Field(
        default=0.0, description="Delay between the starts on one guest and on the next."
    )
    timeout: Annotated[Duration, lasting(1, 7 * _DAY)] = Field(
        default=600.0,
        description="How long it may run on each guest before it is ended and counts as failed. "
        "1s to 168h.",
    )

    @model_validator(mode="after")
    def _has_one_task(self) -> WorkloadSpec:
        tasks = [task for task in TASKS if getattr(self, task) is not None]
        if len(tasks) != 1:
            what = " and ".join(map(repr, tasks)) or "nothing to do"
            raise error("task", f"has {what}", f"a workload has exactly one of {', '.join(TASKS)}")
        return self


class CollectSpec(Section):
    """What is recorded while the lab's workloads run."""

    interval: Annotated[Duration, lasting(0.1, 3600)] = Field(
        default=1.0,
        description="Time between two samples of host, store and guests. 100ms to 1h.",
    )


@dataclass(frozen=True)
class Guest:
    """One guest of the lab, after counts have been expanded."""

    name: str
    group: str
    spec: GuestSpec


class Cluster(Section):
    """A lab: guests, the page store they share, and what runs in them."""

    lab: Name = Field(description="The lab's name, by which other commands find it.")
    store: StoreSpec = Field(default=StoreSpec(), description="The page store all guests share.")
    guests: Annotated[dict[Name, GuestSpec], Field(min_length=1)] = Field(
        description="The guests by name; `{}` is a guest with all defaults.",
        json_schema_extra={"additionalProperties": False},
    )
    workloads: list[WorkloadSpec] = Field(
        default=[], description="What runs in the guests once all are ready, all at once."
    )
    collect: CollectSpec = Field(default=CollectSpec(), description="What is recorded meanwhile.")

    _origin: Origin = PrivateAttr(default=Origin())

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401 -- pydantic's signature
        """Keeps the positions the loader hands over, for checks that come after loading."""
        if isinstance(context, Origin):
            self._origin = context

    @model_validator(mode="after")
    def _is_consistent(self) -> Cluster:
        findings = list(contradictions(self.guests, dict(enumerate(self.workloads))))
        if findings:
            raise InconsistentError(findings)
        return self

    def __eq__(self, other: object) -> bool:
        """Clusters are equal that say the same, wherever they say it."""
        return isinstance(other, Cluster) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # it holds lists

    def expanded(self) -> list[Guest]:
        """All guests in file order: ``web`` with count 2 is ``web-1`` and ``web-2``."""
        return [
            Guest(name, group, spec)
            for group, spec in self.guests.items()
            for name in expand(group, spec.count)
        ]

    def targets(self, workload: WorkloadSpec) -> list[Guest]:
        """The guests a workload runs on, each once, in file order."""
        return [
            guest
            for guest in self.expanded()
            if guest.group in workload.on or guest.name in workload.on
        ]

    def problem(self, finding: Finding) -> Problem:
        """The finding at its position in the file this cluster was loaded from."""
        return self._origin.problem(finding)
