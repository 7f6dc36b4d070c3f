# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose root floods its ports with garbage, beside guests that swap."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.support.swapping import KILL_ALL, Swapper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault]

SPEC = """\
lab: hostile
guests:
  evil: {frontend: relay, memory: 160MiB, swap: 512MiB}
  relayed: {frontend: relay, memory: 160MiB, swap: 512MiB}
  disk: {frontend: nbd, memory: 160MiB, swap: 512MiB}
"""

HELLO = bytes.fromhex("""\
4b5a5450 01010000 01000000 00000000 00000000 08000000 7304ad25 00000000 00800000 00000000""")
"""The one of docs/protocol.md: a session begins, and garbage is met by that."""
ESCAPED = "".join(f"\\{byte:03o}" for byte in HELLO)

# With the agent away its ports can be opened, by one process each. What the host answers is read,
# or it would soon listen no more.
FLOOD = f"""\
mv /usr/bin/kzt-agent /usr/bin/kzt-agent.away; {KILL_ALL}; sleep 0.5
flood() (
    exec 3<>"$1" || exit
    cat <&3 >/dev/null &
    until [ -e /root/enough ]; do
        {{ printf '{ESCAPED}'; head -c 100000 /dev/urandom; }} >&3
    done
    kill $!
)
for port in /sys/class/virtio-ports/vport*; do
    flood /dev/"${{port##*/}}" &
done
wait"""
PEACE = "touch /root/enough; mv /usr/bin/kzt-agent.away /usr/bin/kzt-agent"


@pytest.fixture(scope="module")
def lab(kztlab: Kztlab) -> Iterator[Kztlab]:
    kztlab.json("up", kztlab.spec("hostile", SPEC))
    yield kztlab
    assert kztlab("down", "hostile").returncode == 0


def test_garbage_harms_nobody_else(lab: Kztlab) -> None:
    evil, *others = (Swapper(lab, "hostile", name) for name in ("evil", "relayed", "disk"))
    pid = evil.status()["pid"]
    before = evil.client()["relay_counters"]
    with lab.start("exec", "hostile/evil", "--", FLOOD) as flood, ExitStack() as stack:
        loads = [stack.enter_context(other.loading("256MiB")) for other in others]
        for load in loads:
            load.report()
        flooded = evil.client()["relay_counters"]
        assert flood.process.poll() is None
        evil.run(PEACE)
        code, _, stderr = flood.end()
        assert code == 0, stderr
    assert flooded["skipped_bytes"] > before["skipped_bytes"] + 1_000_000
    assert flooded["sessions"] > before["sessions"]
    assert evil.status()["pid"] == pid
    # With its agent back, even this guest swaps as if nothing had been.
    evil.load("256MiB")
