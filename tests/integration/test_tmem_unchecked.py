# SPDX-License-Identifier: GPL-2.0-or-later
"""Without the rule of sessions a guest gets stale pages of a file where its agent is killed.

The rule has two halves: the store drops the cached pages of a session that has ended, and the guest
forgets that it had put them. Either is enough. Without both, the guard still turns each stale page
into a miss; without that, too, the test has to find them.

Two losses make a page stale. The flush of a page that has been written anew is lost: the old one
stays in the store. Then the put of the new one is lost, and the guest believes that it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.support import unchecked
from tests.support.swapping import Swapper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.fault, pytest.mark.timeout(2400)]

# So many slots have room for all that is under way when the agent is stopped.
SPEC = """\
lab: {lab}
store: {{memory: 512MiB}}
guests:
  t: {{frontend: tmem, memory: 192MiB, swap: 512MiB, tmem: {{slots: 4096}}}}
"""

PAGES = 256

# Where the agent is stopped only what the shell does itself: a program may have to come from the
# store. What was written is not put, what was read is.
SCRIPT = """\
stats=/sys/class/misc/kztmem/stats cleancache=/sys/kernel/mm/cleancache
parameters=/sys/module/kztmem/parameters
drop() { sync; echo 1 >/proc/sys/vm/drop_caches; }
served() { # until pages are put
    before=$(cat $cleancache/puts)
    until [ $(cat $cleancache/puts) -gt $((before + 10)) ]; do
        cat /root/probe >/dev/null
        drop
        sleep 0.2
    done
}
drop_and_die() { # nothing of it reaches the store
    agents=$(pgrep -x kzt-agent)
    sync
    kill -STOP $agents
    echo 1 >/proc/sys/vm/drop_caches
    kill -KILL $agents
    served
}
write() {
    head -c 1M /dev/urandom >/root/content
    dd if=/root/content of=/root/file bs=64k conv=notrunc,fsync 2>/dev/null
    md5sum </root/content
}
echo $SKIP_SESSION >$parameters/skip_session
echo $SKIP_GUARD >$parameters/skip_guard
rm -f /root/file
head -c 256k /dev/urandom >/root/probe
old=$(write)
drop
served
cat /root/file >/dev/null
drop # the store has the old pages
served
new=$(write)
drop_and_die # their flushes are lost
[ "$(md5sum </root/file)" = "$new" ] || echo too soon
drop_and_die # puts of the new ones are lost
hits=$(cat $cleancache/succ_gets) guard=$(cat $stats/guard_cache)
case $(md5sum </root/file) in
"$old") echo old ;;
"$new") echo new ;;
*) echo other ;;
esac
echo $(($(cat $cleancache/succ_gets) - hits)) $(($(cat $stats/guard_cache) - guard))"""


@dataclass(frozen=True)
class Found:
    """What a guest has read in the end."""

    content: str
    hits: int
    caught: int
    """By the guard."""


def read_after_losses(guest: Swapper, *, skip_session: bool, skip_guard: bool) -> Found:
    switches = f"SKIP_SESSION={skip_session:d} SKIP_GUARD={skip_guard:d}"
    content, hits, caught = guest.run(f"{switches}\n{SCRIPT}").split()
    print(found := Found(content, int(hits), int(caught)))  # `pytest -rP` shows it
    return found


@pytest.fixture(scope="module")
def unbound(kztlab: Kztlab) -> Iterator[Swapper]:
    """A guest of a store that keeps cached pages over sessions."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(unchecked.package(kztlab.home)))
        kztlab.json("up", kztlab.spec("unbound", SPEC.format(lab="unbound")))
    log = kztlab.places.lab("unbound") / "store" / "kztmemd.log"
    assert unchecked.WARNING in log.read_text()
    yield Swapper(kztlab, "unbound", "t")
    assert kztlab("down", "unbound").returncode == 0


def test_without_the_rule_of_sessions_a_file_is_stale(unbound: Swapper) -> None:
    found = read_after_losses(unbound, skip_session=True, skip_guard=True)
    assert (found.content, found.caught) == ("old", 0)
    assert found.hits >= PAGES


def test_the_guard_catches_what_the_rule_would_have_prevented(unbound: Swapper) -> None:
    found = read_after_losses(unbound, skip_session=True, skip_guard=False)
    assert found.content == "new"
    assert found.caught >= PAGES


def test_the_guests_half_of_the_rule_is_enough(unbound: Swapper) -> None:
    found = read_after_losses(unbound, skip_session=False, skip_guard=True)
    assert found.content == "new"
    assert found.hits < PAGES


def test_the_stores_half_of_the_rule_is_enough(kztlab: Kztlab) -> None:
    kztlab.json("up", kztlab.spec("bound", SPEC.format(lab="bound")))
    guest = Swapper(kztlab, "bound", "t")
    found = read_after_losses(guest, skip_session=True, skip_guard=True)
    assert found.content == "new"
    assert found.hits < PAGES
    assert kztlab("down", "bound").returncode == 0
