# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose root floods its ports with garbage, beside guests that swap."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.support import port
from tests.support.swapping import KILL_ALL, Swapper

from kztlab.hypervisor.xml import RELAY_PORT

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


def say(frame: port.Frame) -> str:
    """A command that prints it."""
    octal = "".join(f"\\{byte:03o}" for byte in bytes(frame))
    return f"printf '{octal}'"


# With the agent away its ports can be opened, by one process each. Who does not know the nonce is
# told it.
LEARN = f"""\
mv /usr/bin/kzt-agent /usr/bin/kzt-agent.away; {KILL_ALL}; sleep 0.5
exec 3<>/dev/virtio-ports/{RELAY_PORT}
{say(port.hello(1, 0))} >&3
perl -e '
    sysread STDIN, $_, 4096, length or die until /KZTP\\x01\\x05\\0\\0.{{32}}/s;
    print unpack "H*", $&' <&3"""

# A session begins, and garbage is met by that. What the host answers is read, or it would soon
# listen no more.
FLOOD = """\
flood() (
    exec 3<>"$1" || exit
    cat <&3 >/dev/null &
    until [ -e /root/enough ]; do
        {{ {hello}; head -c 100000 /dev/urandom; }} >&3
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
    reset, _ = port.read(bytes.fromhex(evil.run(LEARN)))
    command = FLOOD.format(hello=say(port.hello(1, port.nonce_of(reset))))
    with lab.start("exec", "hostile/evil", "--", command) as flood, ExitStack() as stack:
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
