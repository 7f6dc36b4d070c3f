# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd is killed at bad moments. No acknowledged page may be wrong afterwards."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import nbd
from tests.support.daemon import Daemon, child_of, kill, try_run, wait_for_end
from tests.support.load import DEPTH, PAGE, Load, count_bad, fill, page

pytestmark = pytest.mark.fault

MANY = 250_000

Report = Callable[[str, object], None]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A detached daemon with a client `a` of 1 GiB."""
    with Daemon(tmp_path / "s", "--client", "a:1GiB", memory="192MiB") as daemon:
        yield daemon.detach()


def _kill_and_read(daemon: Daemon, index: int) -> tuple[float, bytes]:
    """Kills the serving process; the time until a new connection has read a page, and the page."""
    pid = daemon.status()["pid"]
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    # The old process may answer while it dies: only a new one counts.
    wait_for_end(pid)
    with nbd.Client(daemon.nbd("a")) as device:
        found = device.read(index * PAGE, PAGE)
        return time.monotonic() - killed, found


def test_ten_kills_under_load(daemon: Daemon, record_property: Report) -> None:
    times = []
    with nbd.Client(daemon.nbd("a")) as device:
        load = Load(device, pages=2000, seed=1)
        for _ in range(10):
            load.run(2000)
            load.fill_pipe()
            assert device.in_flight == DEPTH
            seconds, _ = _kill_and_read(daemon, 0)
            times.append(seconds)
        load.run(2000)
        load.finish()
        assert load.bad_pages == []
        assert load.answers >= 22_000
        assert device.reconnects >= 10
    assert daemon.status()["supervisor_pid"] is not None
    print("serving again after", ", ".join(f"{seconds * 1e3:.0f}" for seconds in times), "ms")
    record_property("restart_seconds", times)


def test_many_pages_survive_and_are_served_at_once(daemon: Daemon, record_property: Report) -> None:
    with nbd.Client(daemon.nbd("a")) as device:
        fill(device, MANY)
        times = []
        for index in (0, MANY // 2, MANY - 1):
            seconds, found = _kill_and_read(daemon, index)
            assert found == page(index, 1)
            times.append(seconds)
        status = daemon.status()
        assert status["recovery"]["reason"] == "recovered"
        assert status["recovery"]["pages"] == MANY
        assert status["clients"][0]["stored_pages"] == MANY
        assert count_bad(device, MANY) == 0
    print(
        f"{MANY} pages: serving again after",
        ", ".join(f"{seconds * 1e3:.0f}" for seconds in times),
        f"ms, of which recovery {status['recovery']['seconds'] * 1e3:.0f} ms",
    )
    record_property("restart_seconds_250k", times)


def test_killed_during_recovery(daemon: Daemon) -> None:
    with nbd.Client(daemon.nbd("a")) as device:
        fill(device, MANY)
    status = daemon.status()
    supervisor, victim = status["supervisor_pid"], status["pid"]
    served = daemon.log().count(" INFO serving ")
    kills = 6
    for moment in range(kills):
        kill(victim)
        victim = child_of(supervisor, after=victim)
        # The first dies before it has the arena open, the others further and further into it.
        time.sleep(moment * 0.01)
    with nbd.Client(daemon.nbd("a")) as device:
        assert count_bad(device, MANY) == 0
    starts = daemon.log().count(" INFO serving ") - served
    assert starts < kills, "none was killed before it had recovered"
    assert daemon.status()["recovery"]["pages"] == MANY


def test_a_killed_supervisor_leaves_the_pages_served(daemon: Daemon) -> None:
    before = daemon.status()
    with nbd.Client(daemon.nbd("a")) as device:
        device.write(0, page(0, 1))
        kill(before["supervisor_pid"])
        assert device.read(0, PAGE) == page(0, 1)
        assert device.reconnects == 0
    after = daemon.status()
    assert after["pid"] == before["pid"]
    assert after["supervisor_pid"] is None
    assert any("nobody restarts this daemon" in warning for warning in after["warnings"])

    second = try_run(*daemon.options, "--detach")
    assert second.returncode == 4
    assert f"pid {after['pid']}" in second.stderr

    kill(after["pid"], signal.SIGTERM)
    daemon.detach()
    with nbd.Client(daemon.nbd("a")) as device:
        assert device.read(0, PAGE) == page(0, 1)


def test_a_daemon_killed_in_the_foreground_is_found_again(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path / "s", "--client", "a:1MiB") as daemon,
        nbd.Client(daemon.start().nbd("a")) as device,
    ):
        device.write(0, page(0, 1))
        daemon.kill()
        daemon.start()
        assert device.read(0, PAGE) == page(0, 1)
        assert device.reconnects == 1


def test_a_client_made_over_http_survives(daemon: Daemon) -> None:
    with daemon.http() as api:
        made = api.post("/v1/clients", json={"name": "b", "swap": "1MiB"}).json()
    with nbd.Client(Path(made["nbd"])) as device:
        device.write(0, page(0, 1))
        kill(daemon.status()["pid"])
        assert device.read(0, PAGE) == page(0, 1)
    assert [client["name"] for client in daemon.status()["clients"]] == ["a", "b"]


def test_a_removed_client_stays_removed(daemon: Daemon) -> None:
    with daemon.http() as api:
        assert api.delete("/v1/clients/a").status_code == 204
    kill(daemon.status()["pid"])
    assert daemon.status()["clients"] == []


def test_the_api_waits_through_a_restart(daemon: Daemon) -> None:
    """Its socket belongs to the supervisor: callers are never refused while it restarts."""
    for _ in range(5):
        pid = daemon.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert daemon.status()["pid"] != pid
