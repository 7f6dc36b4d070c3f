# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's event loop, and what it tells of guests that stop.

libvirt needs an event loop registered before the first connection and run by some thread from then
on; one daemon thread does so for the process. libvirt's habit of printing every error to
stderr is switched off here too: errors reach the user as `KztlabError` and in no other way.
"""

from __future__ import annotations

import threading

import libvirt

_STOPPED_WORDS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "killed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "killed",
}

_once = threading.Lock()
_running = False


def ensure_loop() -> None:
    """Run libvirt's event loop in this process; call it before opening a connection."""
    global _running  # noqa: PLW0603  -- libvirt's loop is one per process, as is this
    with _once:
        if not _running:
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_loop, name="libvirt-events", daemon=True).start()
            _running = True


def _loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class StopWatch:
    """Remembers how each guest stopped, by its UUID, for as long as this process lives."""

    def __init__(self) -> None:
        self._stopped: dict[str, str] = {}
        self._changed = threading.Condition()

    def attach(self, connection: libvirt.virConnect) -> int:
        """Hear of guests through this connection from now on, until the number returned is
        deregistered: a connection with a registration stays open even when it is closed."""
        return connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
        )

    def how(self, uuid: str, timeout: float) -> str | None:
        """How the guest stopped: shutdown, destroyed or killed; None if nothing was heard."""
        with self._changed:
            self._changed.wait_for(lambda: uuid in self._stopped, timeout)
            return self._stopped.get(uuid)

    def _lifecycle(
        self, _conn: libvirt.virConnect, domain: libvirt.virDomain, event: int, why: int, _: None
    ) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            with self._changed:
                self._stopped[domain.UUIDString()] = _STOPPED_WORDS.get(why, "unknown")
                self._changed.notify_all()
