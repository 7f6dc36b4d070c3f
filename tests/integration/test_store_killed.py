# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd killed again and again under a guest that swaps: the guest must not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.conftest import COMMAND
from tests.support import nbd

from kztlab.guest import WORKLOAD_GROUP
from kztlab.store import StoreUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Kztlab, Up

pytestmark = [pytest.mark.guest, pytest.mark.fault]

KILLS = 10
PAGES_BETWEEN = 1500
"""Pages put between two kills: less than a second's worth, so that all fall into the load."""

RESULT = "/root/killed.json"
LOAD = f"""\
mkdir -p {WORKLOAD_GROUP}/killed && echo 0 >{WORKLOAD_GROUP}/killed/cgroup.procs
setsid sh -c 'kzt-load anon --size=240MiB --content=text --passes=2 --json >{RESULT}.part &&
    mv {RESULT}.part {RESULT}' </dev/null >/dev/null 2>&1 &"""
"""Left to itself: it goes on when the command that started it has long ended."""


def status(kztlab: Kztlab) -> dict[str, Any]:
    """The store's status, as soon as it has one."""
    while True:
        try:
            with kztlab.store("shared") as store:
                return store.status()
        except StoreUnreachable:
            time.sleep(0.02)


def puts(kztlab: Kztlab) -> int:
    found: int = status(kztlab)["clients"][0]["counters"]["puts"]
    return found


def waiting(socket: Path) -> bool:
    """Whether the server's end of a connection to this socket holds a request not yet read."""
    command = ["ss", "--no-header", "--unix", "--numeric", "state", "established"]
    found = subprocess.run(
        [*command, "src", str(socket)], capture_output=True, text=True, check=True
    )
    # Network, bytes to be read, bytes to be sent, addresses.
    return any(int(line.split()[1]) > 0 for line in found.stdout.splitlines())


def kill_with_a_request_in_flight(kztlab: Kztlab, socket: Path) -> tuple[int, float]:
    """The process killed, and the seconds until the next one answered a request."""
    pid: int = status(kztlab)["pid"]
    # A stopped process leaves what arrives unread, so the kill cannot come between requests.
    os.kill(pid, signal.SIGSTOP)
    while not waiting(socket):
        time.sleep(0.01)
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with nbd.Client(socket) as device:
        device.read(0, 4096)
    return pid, time.monotonic() - start


def test_no_page_is_lost_with_nobody_there(shared: Up) -> None:
    kztlab = shared.kztlab
    with kztlab.store("shared") as store:
        (client,) = store.status()["clients"]
    socket = kztlab.places.sockets("shared") / "clients" / client["name"] / "nbd.sock"
    assert str(socket) == client["nbd"]
    assert kztlab("exec", "shared/a", "--", "rm", "-f", RESULT).returncode == 0
    assert kztlab("exec", "shared/a", LOAD).returncode == 0
    assert not any(str(COMMAND) in process for process in kztlab.processes())
    killed, seconds = set(), []
    for _ in range(KILLS):
        target = puts(kztlab) + PAGES_BETWEEN
        while puts(kztlab) < target:
            time.sleep(0.05)
        pid, away = kill_with_a_request_in_flight(kztlab, socket)
        killed.add(pid)
        seconds.append(round(away, 3))
    print("seconds until served again:", *seconds)  # `pytest -rP` shows it
    assert kztlab("exec", "shared/a", "--", "test", "-e", RESULT).returncode == 1, "too late"
    done = kztlab("exec", "shared/a", f"until [ -e {RESULT} ]; do sleep 0.2; done; cat {RESULT}")
    result = json.loads(done.stdout)
    assert result["ok"]
    assert result["bad_pages"] == 0
    assert len(killed) == KILLS
    now = status(kztlab)
    assert now["pid"] not in killed
    assert now["recovery"]["reason"] == "recovered"
