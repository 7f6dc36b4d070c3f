# SPDX-License-Identifier: GPL-2.0-or-later
"""What persistent pools mean, in the plainest Python: the oracle that the store is tested against.

A store may refuse a page whenever it likes, but what a refusal leaves behind is fixed: a refused
put on an existing page has removed it, a refused update has changed nothing.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztmem._core import ObjectId

PAGE: Final = 4096


class ReferencePool:
    """A client's persistent pool."""

    def __init__(self) -> None:
        self.pages: dict[tuple[ObjectId, int], bytes] = {}

    def put(self, object_id: ObjectId, index: int, page: bytes) -> None:
        """An accepted put."""
        self.pages[object_id, index] = page

    def refuse_put(self, object_id: ObjectId, index: int) -> bool:
        """A refused put; whether there was a page, which is gone now."""
        return self.pages.pop((object_id, index), None) is not None

    def get(self, object_id: ObjectId, index: int) -> bytes | None:
        """A persistent get leaves the page where it is."""
        return self.pages.get((object_id, index))

    def update(self, object_id: ObjectId, index: int, start: int, data: bytes) -> None:
        """An accepted update; an absent page counts as zeroes."""
        page = self.pages.get((object_id, index), bytes(PAGE))
        self.pages[object_id, index] = page[:start] + data + page[start + len(data) :]

    def flush(self, object_id: ObjectId, index: int) -> bool:
        """Whether there was a page."""
        return self.pages.pop((object_id, index), None) is not None

    def flush_range(self, object_id: ObjectId, first: int, count: int) -> int:
        """How many pages there were."""
        return sum(self.flush(object_id, index) for index in range(first, first + count))

    def flush_object(self, object_id: ObjectId) -> int:
        """How many pages there were."""
        keys = [key for key in self.pages if key[0] == object_id]
        for key in keys:
            del self.pages[key]
        return len(keys)

    def runs(self, object_id: ObjectId, first: int, count: int) -> Iterator[tuple[int, bool]]:
        """Longest runs of pages that are there, and that are not."""
        stored = ((object_id, index) in self.pages for index in range(first, first + count))
        for there, run in groupby(stored):
            yield len(list(run)), there
