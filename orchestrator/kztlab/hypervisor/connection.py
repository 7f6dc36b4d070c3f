# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests by libvirt: start them, find them again, end them, and tell why one is gone."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

import libvirt
import libvirt_qemu

from kztlab.errors import BadInput, HostUnable
from kztlab.hypervisor import console, session
from kztlab.hypervisor.events import StopWatch, ensure_loop
from kztlab.hypervisor.failure import is_port_taken, is_unexplained, start_failure, translated
from kztlab.hypervisor.model import Departure, Domain, GuestState, NbdSwap, RelayPorts, VhostSwap
from kztlab.hypervisor.xml import NAMESPACE, domain_xml, read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from kztlab.places import Places

T = TypeVar("T")

_START_TRIES = 8
_EVENT_SECONDS = 1.0

_PAUSED = "was paused by QEMU, which happens when the host has no room for its disk"

_GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
"""What libvirt answers about a domain that has just ended."""

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}


class Hypervisor:
    """A connection to libvirt that survives its libvirtd; may be used from several threads.

    Every method raises `HostUnable` if libvirt cannot be reached or does not do it.
    """

    def __init__(self, places: Places, uri: str | None = None) -> None:
        self._places = places
        self._uri = uri
        self._lock = threading.Lock()
        self._watch = StopWatch()
        self._open: libvirt.virConnect | None = None
        self._registration = 0

    @classmethod
    def connect(cls, places: Places, uri: str | None = None) -> Self:
        """Connect to `uri`, by default this user's own libvirt, starting it if need be."""
        hypervisor = cls(places, uri)
        hypervisor._connection()
        return hypervisor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of libvirt; the guests go on."""
        with self._lock:
            if self._open is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    self._open.domainEventDeregisterAny(self._registration)
                    self._open.close()
                self._open = None

    def start(self, domain: Domain, *, ephemeral: bool = False) -> GuestState:
        """Boot a guest and return it as it is then known; its kernel has just begun.

        An `ephemeral` guest ends with this connection. Raises `HostUnable` with QEMU's own words
        if the domain cannot be started, also if a requested SSH port is taken; `BadInput`
        if this guest is running already.
        """
        self._make_ready(domain)
        flags = libvirt.VIR_DOMAIN_START_AUTODESTROY if ephemeral else 0
        name = self._name(domain.lab, domain.guest)
        connection = self._connection()
        for tries_left in reversed(range(_START_TRIES)):
            port = _free_port() if domain.ssh_port is None else domain.ssh_port
            xml = domain_xml(domain, name=name, state=self._places.state, ssh_port=port)
            try:
                started = connection.createXML(xml, flags)
            except libvirt.libvirtError as error:
                # Somebody took the port since it was found free: another one will do.
                another = is_port_taken(error) and domain.ssh_port is None
                if tries_left and (another or is_unexplained(error)):
                    continue
                raise start_failure(error, domain, port) from error
            return GuestState(
                lab=domain.lab,
                guest=domain.guest,
                uuid=started.UUIDString(),
                state="running",
                accelerator=domain.accelerator,
                frontend=domain.frontend,
                ssh_port=port,
                console_log=domain.console_log,
            )
        raise AssertionError("unreachable: the last try returns or raises")

    def list(self, lab: str | None = None) -> list[GuestState]:
        """The guests there are, of one lab or of all of this kztlab's, by name."""
        found = self._query(lambda open_: [*self._guests(open_)], "list the guests")
        mine = [state for _, state in found if lab is None or state.lab == lab]
        return sorted(mine, key=lambda state: (state.lab, state.guest))

    def find(self, lab: str, guest: str) -> GuestState | None:
        """One guest, if it is there."""
        return next((state for state in self.list(lab) if state.guest == guest), None)

    def destroy(self, lab: str, guest: str) -> bool:
        """End a guest at once, as by pulling its plug; False if there was none."""

        def end(connection: libvirt.virConnect) -> bool:
            domain = self._domain(connection, lab, guest)
            if domain is None:
                return False
            try:
                domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _GONE:
                    raise
            return True

        return self._query(end, f"end the guest {guest} of lab {lab}")

    def qmp(self, lab: str, guest: str, command: str, **arguments: Any) -> Any:  # noqa: ANN401
        """What QEMU returns for a QMP command; `BadInput` if there is no such guest."""
        request = json.dumps({"execute": command, "arguments": arguments})

        def ask(connection: libvirt.virConnect) -> str:
            domain = self._domain(connection, lab, guest)
            if domain is None:
                raise BadInput(f"lab {lab} has no running guest {guest}")
            return libvirt_qemu.qemuMonitorCommand(domain, request, 0)

        doing = f"ask QEMU of {lab}/{guest} for {command}"
        answer: dict[str, Any] = json.loads(self._query(ask, doing))
        if "error" in answer:
            raise HostUnable(f"cannot {doing}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def departure(self, guest: GuestState) -> Departure | None:
        """Why a guest that was there is gone or stands still; None as long as it runs.

        A panic is told by the console, whoever asks; the rest by what this process has heard from
        libvirt while it was connected.
        """
        there = next((each for each in self.list(guest.lab) if each.uuid == guest.uuid), None)
        if there is not None:
            return Departure("paused", _PAUSED) if there.state == "paused" else None
        panic = console.panic(guest.console_log)
        if panic is not None:
            return Departure("panic", f"panicked: {panic}")
        match self._watch.how(guest.uuid, _EVENT_SECONDS):
            case "shutdown":
                return Departure("shutdown", "shut down or reset by itself")
            case "destroyed":
                return Departure("destroyed", "was ended through libvirt")
            case "killed":
                return Departure("killed", "was killed from outside: its QEMU died")
            case _:
                return Departure("unknown", "is gone, and nobody saw it go")

    def qemu_version(self) -> int:
        """The version of QEMU that this libvirt starts, as libvirt counts it."""
        return self._query(lambda connection: connection.getVersion(), "find QEMU's version")

    def capabilities(self) -> str:
        """What guests can have here, as libvirt's XML of a domain's capabilities."""
        return self._query(
            lambda connection: connection.getDomainCapabilities(None, "x86_64", "pc", "qemu"),
            "find what QEMU can do",
        )

    def _make_ready(self, domain: Domain) -> None:
        if self.find(domain.lab, domain.guest) is not None:
            raise BadInput(f"the guest {domain.guest} of lab {domain.lab} is already running")
        self._make_console(domain.console_log)
        for path in (domain.kernel, domain.initrd, domain.disk, domain.console_log):
            if path is not None:
                self._places.check_reach(path)
        if isinstance(domain.swap, NbdSwap | VhostSwap):
            self._places.check_socket(domain.swap.socket)
        elif isinstance(domain.swap, RelayPorts):
            self._places.check_socket(domain.swap.relay)
            self._places.check_socket(domain.swap.ctl)

    def _make_console(self, log: Path) -> None:
        """An empty log that QEMU may write to, in a folder where it may make no file of its own."""
        self._places.folder(log.parent)
        try:
            log.unlink(missing_ok=True)
            log.touch(mode=0o600, exist_ok=False)
            self._places.own(log)
        except OSError as error:
            raise HostUnable(f"cannot create {log}: {error.strerror}") from error

    def _name(self, lab: str, guest: str) -> str:
        # Names are unique per libvirtd, which an ordinary user's labs of several states may share.
        return f"kzt-{self._places.lab_id(lab)}-{guest}"

    def _guests(
        self, connection: libvirt.virConnect
    ) -> Iterator[tuple[libvirt.virDomain, GuestState]]:
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            state = self._ours(domain)
            if state is not None:
                yield domain, state

    def _domain(
        self, connection: libvirt.virConnect, lab: str, guest: str
    ) -> libvirt.virDomain | None:
        for domain, state in self._guests(connection):
            if (state.lab, state.guest) == (lab, guest):
                return domain
        return None

    def _ours(self, domain: libvirt.virDomain) -> GuestState | None:
        try:
            xml = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
            word = _STATES.get(int(domain.state()[0]), "unknown")
            kztlab, guest = read_metadata(xml, uuid=domain.UUIDString(), state=word)
        except ValueError:
            return None  # somebody else's words in our namespace
        except libvirt.libvirtError as error:
            # Somebody else's domain, or one that went away since it was listed.
            if error.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN_METADATA, *_GONE}:
                return None
            raise
        return guest if kztlab == self._places.state else None

    def _query(self, call: Callable[[libvirt.virConnect], T], doing: str) -> T:
        """Call libvirt for something that may be done twice, once more if the libvirtd died."""
        connection = self._connection()
        try:
            return call(connection)
        except libvirt.libvirtError as error:
            if _alive(connection):
                raise translated(error, doing) from error
        try:
            return call(self._connection())
        except libvirt.libvirtError as error:
            raise translated(error, doing) from error

    def _connection(self) -> libvirt.virConnect:
        with self._lock:
            if self._open is None or not _alive(self._open):
                try:
                    self._open = self._connect()
                except HostUnable:
                    # Between finding libvirtd and connecting it may end, idle or told to.
                    self._open = self._connect()
            return self._open

    def _connect(self) -> libvirt.virConnect:
        ensure_loop()
        uri = self._uri or session.uri(self._places)
        try:
            connection = libvirt.open(uri)
            self._registration = self._watch.attach(connection)
        except libvirt.libvirtError as error:
            raise translated(error, f"connect to libvirt at {uri}") from error
        return connection


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
