# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests under libvirt: started, found, lost in every way, and their libvirtd with them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from kztlab.errors import BadInput, HostUnable
from kztlab.hypervisor import SWAP_SERIAL, DiskSwap, Hypervisor, NbdSwap, connection, console
from kztlab.hypervisor.session import _address, _listener, started, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kztlab.hypervisor import Departure, GuestState
    from kztlab.places import Places
    from tests.conftest import Machines

T = TypeVar("T")

pytestmark = pytest.mark.guest

IDLE = "echo ready; while :; do sleep 1; done"
PANIC = "sleep 1; exit 3"
POWEROFF = "busybox poweroff -f"


def wait_for(what: Callable[[], T | None], limit: float = 60) -> T:
    deadline = time.monotonic() + limit
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return value


def said(guest: GuestState, words: str) -> Callable[[], bool]:
    return lambda: words in console.text(guest.console_log)


def qemu(guest: GuestState) -> Path:
    """The guest's process, as its folder in /proc."""

    def find() -> Path | None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if guest.uuid.encode() in (process / "cmdline").read_bytes():
                    return process
        return None

    return wait_for(find)


def departure(machines: Machines, guest: GuestState) -> Departure:
    return wait_for(lambda: machines.hypervisor.departure(guest))


def test_guest_is_started_found_and_ended(machines: Machines, places: Places) -> None:
    swap = DiskSwap(machines.raw("swap", 64 << 20))
    guest = machines.start("g", init=IDLE, swap=swap, disk=machines.overlay("g"), frontend="disk")
    wait_for(said(guest, "ready"))
    hypervisor = machines.hypervisor
    assert hypervisor.list(machines.lab) == [guest]
    assert hypervisor.list("another") == []
    assert hypervisor.find(machines.lab, "g") == guest
    assert hypervisor.find(machines.lab, "h") is None
    assert hypervisor.departure(guest) is None
    with Hypervisor.connect(places) as other:
        assert other.find(machines.lab, "g") == guest
        assert other.destroy(machines.lab, "g") is True
    assert hypervisor.destroy(machines.lab, "g") is False
    assert hypervisor.list(machines.lab) == []
    assert departure(machines, guest).kind == "destroyed"


def test_guest_does_not_run_as_root_and_is_sandboxed(machines: Machines) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in (qemu(machines.start("g", init=IDLE)) / "status").read_text().splitlines()
        if ":\t" in line
    )
    uid = str(machines.places.account().pw_uid)
    assert uid != "0"
    assert status["Uid"].split() == [uid] * 4
    assert status["Seccomp"] == "2"


def test_qmp_passes_through(machines: Machines) -> None:
    machines.start("g", init=IDLE, swap=DiskSwap(machines.raw("swap", 64 << 20)))
    ask = machines.hypervisor.qmp
    assert ask(machines.lab, "g", "query-status")["running"] is True
    path = f"/machine/peripheral/{SWAP_SERIAL}"
    assert ask(machines.lab, "g", "qom-get", path=path, property="werror") == "report"
    with pytest.raises(HostUnable, match="no-such-command"):
        ask(machines.lab, "g", "no-such-command")
    with pytest.raises(BadInput, match="no running guest h"):
        ask(machines.lab, "h", "query-status")


def test_guest_is_not_started_twice(machines: Machines) -> None:
    guest = machines.start("g", init=IDLE)
    wait_for(said(guest, "ready"))
    with pytest.raises(BadInput, match="already running"):
        machines.start("g", init=IDLE)
    assert said(guest, "ready")(), "the running guest's console was touched"
    assert machines.hypervisor.list(machines.lab) == [guest]


def test_panic_is_told_with_its_reason(machines: Machines) -> None:
    lost = departure(machines, machines.start("g", init=PANIC))
    assert lost.kind == "panic"
    assert "Attempted to kill init" in lost.detail


def test_guest_that_switches_itself_off(machines: Machines) -> None:
    assert departure(machines, machines.start("g", init=POWEROFF)).kind == "shutdown"


def test_guest_killed_from_outside(machines: Machines) -> None:
    guest = machines.start("g", init=IDLE)
    os.kill(int(qemu(guest).name), signal.SIGKILL)
    assert departure(machines, guest).kind == "killed"


def test_panic_is_seen_by_who_was_not_there(machines: Machines, places: Places) -> None:
    guest = machines.start("g", init=PANIC)
    departure(machines, guest)
    with Hypervisor.connect(places) as later:
        lost = later.departure(guest)
    assert lost is not None
    assert lost.kind == "panic"


def test_ephemeral_guest_ends_with_its_connection(machines: Machines, places: Places) -> None:
    with Hypervisor.connect(places) as connected:
        connected.start(machines.domain("g", init=IDLE), ephemeral=True)
        assert machines.hypervisor.find(machines.lab, "g")
    wait_for(lambda: machines.hypervisor.find(machines.lab, "g") is None)


def test_taken_port_is_named(machines: Machines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostUnable, match=f"port {port} .* is taken"):
            machines.start("g", init=IDLE, ssh_port=port)
    assert machines.hypervisor.list(machines.lab) == []
    assert machines.start("g", init=IDLE, ssh_port=port).ssh_port == port


def test_port_that_was_free_a_moment_ago(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = connection._free_port
        ports = iter([port, port, free()])
        monkeypatch.setattr(connection, "_free_port", lambda: next(ports))
        assert machines.start("g", init=IDLE).ssh_port != port


def test_missing_kernel_is_an_error_of_the_host(machines: Machines) -> None:
    with pytest.raises(HostUnable, match="no-such-kernel"):
        machines.start("g", init=IDLE, kernel=machines.folder / "no-such-kernel")


def test_no_libvirt_at_the_address(places: Places) -> None:
    with pytest.raises(HostUnable, match="cannot connect to libvirt"):
        Hypervisor.connect(places, "qemu+unix:///session?socket=/no/such/socket")


class Store:
    """Serves a file over NBD, as the user that QEMU runs as; may be killed and started again."""

    def __init__(self, machines: Machines) -> None:
        self._file = machines.raw("store", 64 << 20)
        self._user = machines.places.user
        self.socket = (
            machines.places.service_folder(machines.places.sockets(machines.lab)) / "nbd.sock"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = ["qemu-nbd", "-t", "-x", "swap", "-f", "raw"]
        command += ["-k", str(self.socket), str(self._file)]
        self._process = subprocess.Popen(command, user=self._user)
        wait_for(self.socket.exists)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def store(machines: Machines) -> Iterator[Store]:
    served = Store(machines)
    yield served
    machines.end()  # without its store, QEMU would not go before libvirt loses patience
    served.kill()


def test_guest_waits_for_a_store_that_was_killed(machines: Machines, store: Store) -> None:
    store.start()
    guest = machines.start("g", init=IDLE, swap=NbdSwap(store.socket), frontend="nbd")
    assert b'"reconnect-delay": 3600' in (qemu(guest) / "cmdline").read_bytes()

    def write() -> str:
        line = f'qemu-io -d {SWAP_SERIAL} "write -P 7 8k 4k"'
        command = "human-monitor-command"
        answer = machines.hypervisor.qmp(machines.lab, "g", command, **{"command-line": line})
        return str(answer)

    assert "failed" not in write()
    store.kill()
    again = threading.Timer(1, store.start)
    again.start()
    assert "failed" not in write()
    again.join()
    assert machines.hypervisor.qmp(machines.lab, "g", "query-status")["status"] == "running"


def test_store_that_is_not_there_is_named(machines: Machines, store: Store) -> None:
    with pytest.raises(HostUnable, match=f"store does not answer at {store.socket}"):
        machines.start("g", init=IDLE, swap=NbdSwap(store.socket))


needs_own_libvirtd = pytest.mark.skipif(os.getuid() != 0, reason="needs root's own libvirtd")


@needs_own_libvirtd
def test_libvirtd_killed_and_guests_found_again(machines: Machines, places: Places) -> None:
    guest = machines.start("g", init=IDLE)
    wait_for(said(guest, "ready"))
    pid = _listener(_address(places.runtime / "libvirt"))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert machines.hypervisor.find(machines.lab, "g") == guest
    assert _listener(_address(places.runtime / "libvirt")) not in {None, pid}
    with Hypervisor.connect(places) as other:
        assert other.find(machines.lab, "g") == guest
    # Answered once libvirtd has QEMU's monitor again; until then it hears of no death.
    machines.hypervisor.qmp(machines.lab, "g", "query-status")
    os.kill(int(qemu(guest).name), signal.SIGKILL)
    assert departure(machines, guest).kind == "killed"


@needs_own_libvirtd
def test_commands_at_once_share_one_libvirtd(places: Places) -> None:
    pid = _listener(_address(places.runtime / "libvirt"))
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    script = (
        "import sys; from pathlib import Path; from kztlab.places import Places; "
        "from kztlab.hypervisor import Hypervisor; "
        "*folders, user = sys.argv[1:]; places = Places(*map(Path, folders), user)\n"
        "with Hypervisor.connect(places) as hypervisor: print(hypervisor.list('none'))"
    )
    arguments = [str(places.state), str(places.cache), str(places.runtime), str(places.user)]
    command = [sys.executable, "-c", script, *arguments]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    outputs = [process.communicate()[0] for process in running]
    assert outputs == [b"[]\n"] * 4


@needs_own_libvirtd
def test_libvirtd_stays_for_a_lab_that_came_meanwhile(other_places: Places) -> None:
    """`down` finds no lab left, and another `up` makes one before libvirtd is told to end."""
    address = _address(other_places.runtime / "libvirt")
    with Hypervisor.connect(other_places):
        pid = _listener(address)
    assert pid is not None
    stop(other_places, needed=lambda: True)
    assert _listener(address) == pid
    stop(other_places, needed=lambda: False)
    assert _listener(address) is None
    assert not started(other_places)
