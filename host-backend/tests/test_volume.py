# SPDX-License-Identifier: GPL-2.0-or-later
"""Random operations in volume against the reference, and what the driver does with a difference."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import volume
from tests.support.pair import Pair
from tests.support.tmem import EEMPTY, EFROZEN, SemanticsError

from kztmem._core import Store

if TYPE_CHECKING:
    from kztmem._core import Client, ObjectId


@pytest.mark.timeout(1800)
def test_a_million_random_operations() -> None:
    tally = volume.run(seed=20, operations=1_000_000)
    print(f"at most {tally.fullest} of their sizes in {tally.samples} samples")  # -rP shows it
    assert 0.9 < tally.fullest["arena"] <= 1
    assert 0.5 < tally.fullest["spill"] <= 1
    # A store that refuses everything would agree with the reference as well.
    for method, answer in [
        ("put_page", 1),
        ("put_page", -12),
        ("put_page", -28),
        ("put_page", -EFROZEN),
        ("get_page", 1),
        ("get_page", 0),
        ("get_page", -EEMPTY),
        ("flush_page", 1),
        ("flush_page", -EFROZEN),
    ]:
        assert tally.answers[method, answer] > 1000, (method, answer, tally.answers)


class _ForgetfulClient:
    """Acknowledges flushes of one index without doing them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # the client's own
        return getattr(self._client, name)

    def flush_page(self, pool: int, object_id: ObjectId, index: int) -> int:
        flushed = pool if index != 13 else -1
        answer = self._client.flush_page(flushed, object_id, index)
        return answer if flushed == pool else 1


class _ForgetfulStore:
    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # the store's own
        self._store = Store(**options)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # the store's own
        return getattr(self._store, name)

    def client(self, name: str, **options: Any) -> _ForgetfulClient:  # noqa: ANN401
        return _ForgetfulClient(self._store.client(name, **options))


def test_a_difference_is_cut_down_to_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "Pair", partial(Pair, kind=_ForgetfulStore))  # type: ignore[arg-type]
    with pytest.raises(SemanticsError) as raised:
        volume.run(seed=3, operations=20_000)
    said = str(raised.value)
    assert re.match(r"seed 3, episode 0, step \d+: SemanticsError: ", said)
    few = re.search(r"^the same in (\d+) steps: SemanticsError: ", said, re.MULTILINE)
    assert few
    assert int(few[1]) <= 4, said
    assert "name='flush'" in said
