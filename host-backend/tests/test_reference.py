# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model itself: each rule of the semantics, and what breaks it."""

from __future__ import annotations

from errno import EFAULT, ENODEV, ENOMEM, ENOSPC, EPERM

import pytest
from tests.support.tmem import (
    EEMPTY,
    EFROZEN,
    NO_UUID,
    PAGE,
    PERSIST,
    PRECOMPRESSED,
    SHARED,
    VERSION,
    Client,
    Key,
    Reference,
    SemanticsError,
)

A: Key = ((0, 0, 0), 0)
B: Key = ((0, 0, 1), 2**32 - 1)
OLD, NEW = bytes(PAGE), b"n" * PAGE
UUID = (1, 2)


def _client(*, roomy: bool = False) -> Client:
    """With a persistent pool 0 and an ephemeral pool 1."""
    client = Reference(roomy=roomy).client("a")
    client.new_pool(VERSION | PERSIST, (0, 0), 0)
    client.new_pool(VERSION, (0, 0), 1)
    return client


def test_rule_1_a_get_returns_the_latest_page_put() -> None:
    client = _client()
    client.put_page(0, A, OLD, 1)
    client.put_page(0, A, NEW, 1)
    client.get_page(0, A, 1, NEW)
    with pytest.raises(SemanticsError, match="another page"):
        client.get_page(0, A, 1, OLD)


def test_rule_1_a_refused_put_on_an_existing_key_leaves_nothing() -> None:
    client = _client()
    client.put_page(0, A, OLD, 1)
    client.put_page(0, B, OLD, 1)
    client.put_page(0, A, NEW, -ENOSPC)
    client.get_page(0, A, 0, None)
    with pytest.raises(SemanticsError, match="not there"):
        client.get_page(0, A, 1, OLD)
    client.put_page(0, A, NEW, -ENOMEM)
    with pytest.raises(SemanticsError, match="ENOSPC for a new key"):
        client.put_page(0, A, NEW, -ENOSPC)
    with pytest.raises(SemanticsError, match="ENOMEM for an existing key"):
        client.put_page(0, B, NEW, -ENOMEM)


def test_what_is_no_page_is_a_fault_and_leaves_nothing() -> None:
    client = _client()
    client.put_page(0, A, OLD, 1)
    client.put_page(0, A, b"short", -EFAULT)
    client.get_page(0, A, -EEMPTY, None)


@pytest.mark.parametrize("pool", [0, 1])
def test_rule_2_no_hit_follows_a_miss(pool: int) -> None:
    client = _client()
    client.put_page(pool, B, OLD, 1)
    if pool == 1:
        client.put_page(pool, A, OLD, 1)
    client.get_page(pool, A, 0, None)
    with pytest.raises(SemanticsError, match="not there"):
        client.get_page(pool, A, 1, OLD)


def test_rule_3_a_private_ephemeral_get_takes_the_page_out() -> None:
    client = _client()
    client.put_page(1, A, OLD, 1)
    client.get_page(1, A, 1, OLD)
    with pytest.raises(SemanticsError, match="not there"):
        client.get_page(1, A, 1, OLD)
    with pytest.raises(SemanticsError, match="only be empty"):
        client.get_page(1, A, 0, None)
    client.get_page(1, A, -EEMPTY, None)


def test_rule_4_persistent_pages_stay_and_ephemeral_ones_may_vanish() -> None:
    client = _client()
    for pool in (0, 1):
        client.put_page(pool, A, OLD, 1)
        client.put_page(pool, B, OLD, 1)
    with pytest.raises(SemanticsError, match="that is there"):
        client.get_page(0, A, 0, None)
    with pytest.raises(SemanticsError, match="EEMPTY with 2 pages"):
        client.get_page(0, A, -EEMPTY, None)
    client.get_page(1, A, 0, None)
    client.get_page(1, A, -EEMPTY, None)
    with pytest.raises(SemanticsError, match="not there"):
        client.get_page(1, B, 1, OLD)


def test_a_roomy_store_has_no_excuse() -> None:
    client = _client(roomy=True)
    client.put_page(1, A, OLD, 1)
    with pytest.raises(SemanticsError, match="that is there"):
        client.get_page(1, A, 0, None)
    with pytest.raises(SemanticsError, match="with room"):
        client.put_page(1, B, OLD, -ENOMEM)


@pytest.mark.parametrize("pool", [0, 1])
def test_rule_5_a_flush_is_final(pool: int) -> None:
    client = _client()
    for flush in ("page", "object"):
        client.put_page(pool, A, OLD, 1)
        client.put_page(pool, B, OLD, 1)
        if flush == "page":
            client.flush_page(pool, A, 1)
        else:
            client.flush_object(pool, A[0], 1)
        with pytest.raises(SemanticsError, match="not there"):
            client.get_page(pool, A, 1, OLD)
        client.get_page(pool, B, 1, OLD)
    with pytest.raises(SemanticsError, match="only 1"):
        client.flush_page(pool, A, 0)


def test_rule_6_a_frozen_client_takes_no_new_keys_and_flushes_all_the_same() -> None:
    client = _client()
    client.put_page(0, A, OLD, 1)
    client.frozen = True
    client.put_page(0, A, NEW, 1)
    client.put_page(0, B, NEW, -EFROZEN)
    client.get_page(0, A, 1, NEW)
    with pytest.raises(SemanticsError, match="new page was taken while frozen"):
        client.put_page(0, B, NEW, 1)
    with pytest.raises(SemanticsError, match="for an existing key"):
        client.put_page(0, A, NEW, -EFROZEN)
    client.flush_page(0, A, -EFROZEN)
    client.get_page(0, A, -EEMPTY, None)
    client.frozen = False
    with pytest.raises(SemanticsError, match="of none"):
        client.put_page(0, A, NEW, -EFROZEN)


def test_rule_7_pools_are_shared_by_authorization_only() -> None:
    store = Reference()
    one, two, stranger = (store.client(name) for name in ("one", "two", "stranger"))
    store.authorize(UUID, "one")
    store.authorize(UUID, "two")
    store.authorize(NO_UUID, "two")
    for client in (one, two, stranger):
        client.new_pool(VERSION | SHARED, UUID, 0)
    two.new_pool(VERSION | SHARED, NO_UUID, 1)
    one.put_page(0, A, OLD, 1)
    two.get_page(0, A, 1, OLD)
    one.get_page(0, A, 1, OLD)
    stranger.get_page(0, A, -EEMPTY, None)
    two.get_page(1, A, -EEMPTY, None)
    with pytest.raises(SemanticsError, match="not there"):
        stranger.get_page(0, A, 1, OLD)
    one.destroy_pool(0, 1)
    one.get_page(0, A, -ENODEV, None)
    two.get_page(0, A, 1, OLD)
    two.destroy_pool(0, 1)
    two.new_pool(VERSION | SHARED, UUID, 0)
    two.get_page(0, A, -EEMPTY, None)


@pytest.mark.parametrize(
    "flags",
    [
        0,
        2 << 24,
        VERSION | SHARED | PERSIST,
        VERSION | PRECOMPRESSED,
        VERSION | 8,
        VERSION | 0x10,
        VERSION | 0x100,
        VERSION | 0x800000,
    ],
)
def test_flags_that_no_pool_may_have(flags: int) -> None:
    client = _client()
    client.new_pool(flags, UUID, -EPERM)
    with pytest.raises(SemanticsError, match=f"only -{EPERM}"):
        client.new_pool(flags, UUID, 2)


def test_pools_are_sixteen_to_a_client() -> None:
    client = _client()
    with pytest.raises(SemanticsError, match="for a new pool"):
        client.new_pool(VERSION, UUID, 1)
    for number in range(2, 16):
        client.new_pool(VERSION, UUID, number)
    client.new_pool(VERSION, UUID, -ENOMEM)
    with pytest.raises(SemanticsError, match=f"only -{ENOMEM}"):
        client.new_pool(VERSION, UUID, 16)


@pytest.mark.parametrize("pool", [-1, 2, 16, 2**31 - 1])
def test_there_is_no_such_pool(pool: int) -> None:
    client = _client()
    client.put_page(pool, A, OLD, -ENODEV)
    client.get_page(pool, A, -ENODEV, None)
    client.flush_page(pool, A, -ENODEV)
    client.flush_object(pool, A[0], -ENODEV)
    client.destroy_pool(pool, -ENODEV)
    with pytest.raises(SemanticsError):
        client.put_page(pool, A, OLD, 1)


def test_recovery_drops_ephemeral_pools_and_nothing_else() -> None:
    client = _client()
    client.put_page(0, A, OLD, 1)
    client.put_page(1, A, OLD, 1)
    client.store.recover()
    client.get_page(0, A, 1, OLD)
    client.get_page(1, A, -ENODEV, None)
    client.new_pool(VERSION, UUID, 1)
    client.get_page(1, A, -EEMPTY, None)
