# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kztlab.spec import (
    AnonSpec,
    Cluster,
    CollectSpec,
    GuestSpec,
    SpecError,
    StoreSpec,
    WorkloadSpec,
    dump,
    load,
)
from kztlab.spec.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.spec import Problem

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,11}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


def seconds(low: int, high: int) -> st.SearchStrategy[float]:
    return st.integers(low * 1000, high * 1000).map(lambda milliseconds: milliseconds / 1000)


def mebibytes(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda size: size * MIB)


STORES = st.builds(
    StoreSpec,
    memory=mebibytes(4, 1 << 20),
    codec=st.sampled_from(["lzo", "lz4", "none", "zstd", "zstd:19", "zstd:-7"]),
    persistent=st.sampled_from(["zsmalloc", "xvmalloc", "zbud"]),
    dedup=st.sampled_from(["off", "client", "domain:a", "domain:a:b#"]),
    socket=st.none() | st.just("/run/kztmem/api.sock"),
    ratio=st.floats(1, 1000),
    overcommit=st.booleans(),
)
GUESTS = st.builds(
    GuestSpec,
    count=st.integers(1, 3),
    image=st.sampled_from(["debian-trixie", "1.0", "own"]),
    memory=mebibytes(256, 1024),
    vcpus=st.integers(1, 64),
    frontend=st.sampled_from(["auto", "nbd", "vhost-user-blk", "disk", "zram", "none"]),
    swap=st.integers(256, 1 << 20).map(lambda pages: pages * 4 * KIB),
    weight=st.integers(1, 65535),
    cap=st.none() | mebibytes(64, 256),
    reservation=st.none() | mebibytes(1, 64),
    workload_memory_max=st.none() | st.integers(64 * MIB, 256 * MIB),
    boot_timeout=seconds(1, 3600),
)
ANONS = st.builds(
    AnonSpec,
    size=st.integers(256, 16384).map(lambda pages: pages * 4 * KIB),
    content=st.sampled_from(["real", "text", "zero", "random", "mixed"]),
    passes=st.integers(1, 9),
    access=st.sampled_from(["sequential", "random", "zipf"]),
    seed=st.integers(0, (1 << 64) - 1),
    corpus=TEXT.map(lambda name: f"/{name}"),
)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Clusters of all kinds, as far as their parts agree."""
    groups = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    guests = {f"{name}x": draw(GUESTS) for name in groups}
    tasks = st.fixed_dictionaries({"anon": ANONS}) | st.fixed_dictionaries({"command": TEXT})
    workloads = [
        WorkloadSpec(
            name=name,
            on=draw(st.lists(st.sampled_from(sorted(guests)), min_size=1, max_size=3)),
            stagger=draw(seconds(0, 60)),
            timeout=draw(seconds(1, 600)),
            **draw(tasks),
        )
        for name in draw(st.lists(NAMES, max_size=3, unique=True))
    ]
    return Cluster(
        lab=draw(NAMES),
        store=draw(STORES),
        guests=guests,
        workloads=workloads,
        collect=CollectSpec(interval=draw(seconds(1, 60))),
    )


def problems_of(path: Path) -> list[Problem] | None:
    """What is wrong with a file; `None` if it loads."""
    try:
        load(path)
    except SpecError as error:
        return error.problems
    return None


@given(cluster=clusters())
def test_what_is_written_loads_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, cluster: Cluster
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(cluster), encoding="utf-8")
    assert load(path) == cluster


@given(
    contents=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text(
        st.sampled_from(" \n\t:-{}[],&*!|>'\"#%@`?<lab guests store: 1MiB"), max_size=200
    ).map(str.encode)
)
def test_whatever_a_file_holds_it_loads_or_has_problems(
    tmp_path_factory: pytest.TempPathFactory, contents: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(contents)
    problems = problems_of(path)
    assert problems is None or problems
    assert all(problem.line >= 1 <= problem.column for problem in problems or [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["lab", "guests", "store", "workloads", "anon", "on", "size", "name", "a", "count"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    guests=VALUES,
    workloads=VALUES | st.lists(st.fixed_dictionaries({"name": VALUES, "on": VALUES}), max_size=2),
)
def test_values_of_any_type_anywhere_are_problems_at_worst(
    tmp_path_factory: pytest.TempPathFactory, guests: object, workloads: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "typed.yaml"
    data = {"lab": "q", "guests": guests, "workloads": workloads}
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    problems = problems_of(path)
    assert problems is None or problems


def test_off_is_text(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("lab: q\nguests: {a: {}}\nstore: {dedup: off}\n")
    assert load(path).store.dedup == "off"


def test_counts_expand_and_workloads_find_their_guests() -> None:
    both = WorkloadSpec(name="both", on=["web", "db"], command="true")
    some = WorkloadSpec(name="some", on=["web-2", "web-2"], command="true")
    cluster = Cluster(
        lab="q",
        guests={"web": GuestSpec(count=2), "db": GuestSpec()},
        workloads=[both, some],
    )
    assert [(guest.name, guest.group) for guest in cluster.expanded()] == [
        ("web-1", "web"),
        ("web-2", "web"),
        ("db", "db"),
    ]
    assert [guest.name for guest in cluster.targets(both)] == ["web-1", "web-2", "db"]
    assert [guest.name for guest in cluster.targets(some)] == ["web-2"]


def test_the_defaults() -> None:
    cluster = Cluster(lab="q", guests={"a": GuestSpec()})
    assert cluster.store == StoreSpec(
        memory=512 * MIB,
        codec="lzo",
        persistent="zsmalloc",
        ephemeral="zbud",
        dedup="off",
        socket=None,
        ratio=3.0,
        overcommit=False,
    )
    assert cluster.guests["a"] == GuestSpec(
        count=1,
        image="debian-trixie",
        memory=192 * MIB,
        vcpus=1,
        frontend="nbd",
        swap=GIB,
        workload_memory_max=None,
        boot_timeout=300.0,
    )
    assert cluster.collect.interval == 1.0
    assert cluster.workloads == []


def test_a_program_cannot_build_a_contradiction_either() -> None:
    with pytest.raises(ValidationError, match="unknown guest 'b'"):
        Cluster(
            lab="q",
            guests={"a": GuestSpec()},
            workloads=[WorkloadSpec(name="w", on=["b"], command="true")],
        )


def test_a_guest_without_a_swap_device_has_no_swap() -> None:
    assert GuestSpec(frontend="none").swap_size == 0
    assert GuestSpec(frontend="disk").swap_size == GIB


def test_a_frontend_that_needs_a_kernel_of_its_own_has_an_image_with_it() -> None:
    images = {
        frontend: GuestSpec.model_validate({"frontend": frontend}).image
        for frontend in ("nbd", "disk", "zram", "tmem", "zswap")
    }
    assert {name for name, image in images.items() if image == "debian-trixie-tmem"} == {
        "tmem",
        "zswap",
    }
    assert GuestSpec(frontend="tmem", image="mine").image == "mine"


def test_a_guest_that_has_a_disk_besides_does_not_rely_on_the_store() -> None:
    assert GuestSpec(frontend="tmem").uses_store
    assert not GuestSpec(frontend="tmem").relies_on_store
    assert GuestSpec(frontend="nbd").relies_on_store
