# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tmem ABI means, in the plainest Python: the oracle that the store is tested against.

A store may choose: it may refuse a page, and an ephemeral page may vanish. So each operation takes
what the store answered, checks that it had that choice, and goes on from there. `SemanticsError` is
raised for an answer that the rules do not allow.

A *roomy* store has no reason to refuse or to drop anything, and is held to that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EFAULT, ENODEV, ENOMEM, ENOSPC, EPERM
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

ObjectId: TypeAlias = tuple[int, int, int]
Key: TypeAlias = tuple[ObjectId, int]
"""A page's place in its pool: object and index."""

Uuid: TypeAlias = tuple[int, int]

PAGE: Final = 4096

PERSIST: Final = 1
SHARED: Final = 2
PRECOMPRESSED: Final = 4
PAGE_SIZE_SHIFT: Final = 4
RESERVED: Final = 0x00FFFF00
VERSION_SHIFT: Final = 24
VERSION: Final = 1 << VERSION_SHIFT
"""The flags of a private ephemeral pool."""

EFROZEN: Final = 1000
EEMPTY: Final = 1001

POOLS_PER_CLIENT: Final = 16
SHARED_POOLS: Final = 16
NO_UUID: Final[Uuid] = (2**64 - 1, 2**64 - 1)
"""All ones: a shared pool that wants no partner."""


class SemanticsError(AssertionError):
    """The store answered what it must not."""


@dataclass(eq=False)
class Pool:
    """What a pool must hold, as far as the last answers tell."""

    persistent: bool
    shared: Uuid | None = None
    """The UUID by which others join it."""
    may_vanish: bool = False
    pages: dict[Key, bytes] = field(default_factory=dict)
    members: int = 1


@dataclass(eq=False)
class Reference:
    """The store: its clients, and the pools that they share."""

    roomy: bool = False
    clients: dict[str, Client] = field(default_factory=dict)
    shared: dict[Uuid, Pool] = field(default_factory=dict)
    authorized: set[tuple[Uuid, str]] = field(default_factory=set)

    def client(self, name: str) -> Client:
        """A client, with the pools it has left."""
        return self.clients.setdefault(name, Client(self, name))

    def authorize(self, uuid: Uuid, name: str) -> None:
        """The host lets a client share the pool of that UUID."""
        self.authorized.add((uuid, name))

    def recover(self) -> None:
        """The store's process has ended and another has taken over what it left."""
        self.shared.clear()
        for client in self.clients.values():
            client.frozen = False
            client.pools = {id_: pool for id_, pool in client.pools.items() if pool.persistent}

    def persistent_pools(self) -> Iterator[tuple[Client, int, Pool]]:
        """All that has to survive."""
        for client in self.clients.values():
            for id_, pool in client.pools.items():
                if pool.persistent:
                    yield client, id_, pool


@dataclass(eq=False)
class Client:
    """A client's side of the ABI. Every operation is told the store's answer last."""

    store: Reference
    name: str
    frozen: bool = False
    pools: dict[int, Pool] = field(default_factory=dict)

    def new_pool(self, flags: int, uuid: Uuid, answer: int) -> None:
        """NEW_POOL: the pool's id."""
        persistent, shared = bool(flags & PERSIST), bool(flags & SHARED)
        page_size = flags >> PAGE_SIZE_SHIFT & 0xF
        permitted = (
            flags >> VERSION_SHIFT == 1
            and page_size == 0
            and not flags & (RESERVED | PRECOMPRESSED | 8)
            and not (persistent and shared)
        )
        if not permitted:
            return _expect(answer, -EPERM)
        sharing = shared and uuid != NO_UUID and (uuid, self.name) in self.store.authorized
        joined = self.store.shared.get(uuid) if sharing else None
        no_shared_left = sharing and joined is None and len(self.store.shared) == SHARED_POOLS
        if len(self.pools) == POOLS_PER_CLIENT or no_shared_left:
            return _expect(answer, -ENOMEM)
        if answer not in range(POOLS_PER_CLIENT) or answer in self.pools:
            _differ(f"{answer} for a new pool, beside {sorted(self.pools)}")
        if joined is not None:
            joined.members += 1
            pool = joined
        else:
            may_vanish = not persistent and not self.store.roomy
            pool = Pool(persistent, uuid if sharing else None, may_vanish)
            if sharing:
                self.store.shared[uuid] = pool
        self.pools[answer] = pool
        return None

    def destroy_pool(self, pool_id: int, answer: int) -> None:
        """DESTROY_POOL: a shared pool goes with its last member."""
        pool = self.pools.pop(pool_id, None)
        if pool is None:
            return _expect(answer, -ENODEV)
        pool.members -= 1
        if pool.shared and pool.members == 0:
            del self.store.shared[pool.shared]
        return _expect(answer, 1)

    def put_page(self, pool_id: int, key: Key, page: bytes, answer: int) -> None:
        """PUT_PAGE: whatever was there before is never readable again."""
        pool = self.pools.get(pool_id)
        if pool is None:
            return _expect(answer, -ENODEV)
        if len(page) != PAGE:
            pool.pages.pop(key, None)
            return _expect(answer, -EFAULT)
        old = pool.pages.get(key)
        certainly_old = old is not None and not pool.may_vanish
        if answer == 1:
            if self.frozen and old is None:
                _differ("a new page was taken while frozen")
            pool.pages[key] = page
            return None
        if answer == -EFROZEN:
            if not self.frozen or certainly_old:
                _differ(f"EFROZEN {'for an existing key' if self.frozen else 'of none'}")
        elif answer in {-ENOMEM, -ENOSPC}:
            if self.store.roomy:
                _differ(f"{answer} with room for everything")
            if answer == -ENOSPC and old is None:
                _differ("ENOSPC for a new key")
            if answer == -ENOMEM and (certainly_old or self.frozen):
                _differ(f"ENOMEM for {'an existing key' if old else 'a new key while frozen'}")
        else:
            _differ(f"{answer} for a put")
        pool.pages.pop(key, None)
        return None

    def get_page(self, pool_id: int, key: Key, answer: int, page: bytes | None) -> None:
        """GET_PAGE: 1 with the latest page, 0 for a miss, or −EEMPTY."""
        pool = self.pools.get(pool_id)
        if pool is None:
            return _expect(answer, -ENODEV)
        held = pool.pages.get(key)
        if answer == 1:
            if held is None:
                _differ("a hit on a page that is not there")
            if page != held:
                _differ("another page than the last one put")
            if not pool.persistent and not pool.shared:
                del pool.pages[key]
            return None
        if page is not None:
            _differ(f"{answer} and a page")
        if answer == 0:
            if held is not None and not pool.may_vanish:
                _differ("a miss on a page that is there")
            pool.pages.pop(key, None)
            if not pool.pages:
                _differ("a miss, where the pool can only be empty")
        elif answer == -EEMPTY:
            if pool.pages and not pool.may_vanish:
                _differ(f"EEMPTY with {len(pool.pages)} pages")
            pool.pages.clear()
        else:
            _differ(f"{answer} for a get")
        return None

    def flush_page(self, pool_id: int, key: Key, answer: int) -> None:
        """FLUSH_PAGE: final, found or not, and while frozen too."""
        pool = self.pools.get(pool_id)
        if pool is None:
            return _expect(answer, -ENODEV)
        pool.pages.pop(key, None)
        return _expect(answer, -EFROZEN if self.frozen else 1)

    def flush_object(self, pool_id: int, object_id: ObjectId, answer: int) -> None:
        """FLUSH_OBJECT: the same for all pages of an object."""
        pool = self.pools.get(pool_id)
        if pool is None:
            return _expect(answer, -ENODEV)
        for key in [key for key in pool.pages if key[0] == object_id]:
            del pool.pages[key]
        return _expect(answer, -EFROZEN if self.frozen else 1)


def _expect(answer: int, right: int) -> None:
    if answer != right:
        _differ(f"{answer}, where only {right} is right")


def _differ(what: str) -> NoReturn:
    raise SemanticsError(what)
