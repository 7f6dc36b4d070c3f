# SPDX-License-Identifier: GPL-2.0-or-later
"""What one client may take of the memory, and what that leaves to others."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import nbd
from tests.support.daemon import Daemon, try_run
from tests.support.load import PAGE

pytestmark = pytest.mark.fault

MIB = 1 << 20


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "s", memory="16MiB") as daemon:
        yield daemon.start()


def _add(daemon: Daemon, name: str, **terms: str) -> None:
    with daemon.http() as api:
        wanted = {"name": name, "swap": "32MiB", **terms}
        api.post("/v1/clients", json=wanted).raise_for_status()


def _change(daemon: Daemon, name: str, **terms: str) -> None:
    with daemon.http() as api:
        api.patch(f"/v1/clients/{name}", json=terms).raise_for_status()


def _figures(daemon: Daemon, name: str) -> dict[str, Any]:
    with daemon.http() as api:
        figures: dict[str, Any] = api.get(f"/v1/clients/{name}").raise_for_status().json()
        return figures


def _noise(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


def _fill(daemon: Daemon, name: str, *, first: int = 0, pages: int = 32 * MIB // PAGE) -> int:
    """Writes pages of noise until one is refused; the number of the page after the last one."""
    with nbd.Client(Path(_figures(daemon, name)["nbd"])) as device:
        for number in range(first, first + pages):
            try:
                device.write(number * PAGE, _noise(number))
            except nbd.NbdError as refused:
                if refused.error != errno.ENOSPC:
                    raise
                return number
    return first + pages


def _check(daemon: Daemon, name: str, pages: int) -> None:
    with nbd.Client(Path(_figures(daemon, name)["nbd"])) as device:
        for number in range(pages):
            assert device.read(number * PAGE, PAGE) == _noise(number)


def test_a_client_over_its_cap_is_refused_while_others_go_on(daemon: Daemon) -> None:
    _add(daemon, "a", cap="2MiB")
    _add(daemon, "b")
    held = _fill(daemon, "a")
    assert 450 < held < 2 * MIB // PAGE
    full = _figures(daemon, "a")
    assert 2 * MIB - 2 * PAGE < full["charged_bytes"] <= full["cap_bytes"] == 2 * MIB
    assert full["counters"]["failed_puts"] == full["counters"]["over_cap"] == 1
    assert _fill(daemon, "b", pages=2 * held) == 2 * held

    _change(daemon, "a", cap="4MiB")
    more = _fill(daemon, "a", first=held)
    assert held < more < 4 * MIB // PAGE
    daemon.kill()
    # What was changed lasts, and what was stored is charged again.
    daemon.start()
    again = _figures(daemon, "a")
    assert again["cap_bytes"] == 4 * MIB >= again["charged_bytes"] > 2 * MIB
    assert _fill(daemon, "a", first=more) == more
    _change(daemon, "a", cap="none")
    assert _fill(daemon, "a", first=more, pages=64) == more + 64
    _check(daemon, "a", more + 64)
    _check(daemon, "b", 2 * held)


def test_what_is_reserved_is_there_when_others_have_all_the_rest(daemon: Daemon) -> None:
    _add(daemon, "a")
    _add(daemon, "b", reservation="4MiB")
    held = _fill(daemon, "a")
    counters = _figures(daemon, "a")["counters"]
    assert counters["over_reservation"] == counters["failed_puts"] == 1
    assert counters["over_cap"] == 0
    reserved = 4 * MIB * 15 // 16 // PAGE  # their headers and the index are charged as well
    assert _fill(daemon, "b", pages=reserved) == reserved
    _check(daemon, "a", held)
    _check(daemon, "b", reserved)


def test_what_the_file_says_of_a_client_goes_at_each_start(tmp_path: Path) -> None:
    file = tmp_path / "kztmemd.toml"
    with Daemon(tmp_path / "s", "--config", str(file)) as daemon:
        for said, terms in (
            ('weight = 2\ncap = "8MiB"\nreservation = "4MiB"', (2, 8 * MIB, 4 * MIB)),
            ('cap = "none"', (2, None, 4 * MIB)),
            ('reservation = "none"', (2, None, 0)),
        ):
            file.write_text(f'[clients.a]\nswap = "32MiB"\n{said}\n')
            daemon.start()
            figures = _figures(daemon, "a")
            found = tuple(figures[key] for key in ("weight", "cap_bytes", "reservation_bytes"))
            assert found == terms
            daemon.kill()


def test_a_daemon_that_cannot_keep_what_is_reserved_does_not_start(tmp_path: Path) -> None:
    with Daemon(tmp_path / "s", memory="16MiB") as daemon:
        _add(daemon.start(), "a", reservation="8MiB")
        daemon.kill()
        refused = try_run("--state", str(daemon.state), "--memory", "8MiB")
        assert refused.returncode == 2
        assert "client 'a' cannot have its reservation" in refused.stderr
        assert "--memory" in refused.stderr
        assert _figures(daemon.start(), "a")["reservation_bytes"] == 8 * MIB
