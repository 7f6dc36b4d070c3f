# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices at once when a guest goes away: panicked, killed, or stopped by QEMU."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Self

from kztlab.errors import HostUnable
from kztlab.guest import lost

if TYPE_CHECKING:
    from types import TracebackType

    from kztlab.lab.session import Member, Session

INTERVAL = 0.5
"""Seconds between two looks at libvirt's list."""


class Watch:
    """Looks at the members until it is left; one that is gone gets its `loss`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._members: list[Member] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(5)

    def add(self, member: Member) -> None:
        """Look at this one too from now on."""
        self._members.append(member)

    def _run(self) -> None:
        while not self._done.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Look once. While libvirt is away nothing is seen: the guests may well be there."""
        with contextlib.suppress(HostUnable):
            self._look()

    def _look(self) -> None:
        session = self._session
        for member in list(self._members):
            if member.loss is None:
                departure = session.hypervisor.departure(member.state)
                if departure is not None:
                    member.lose(lost(member.state, departure.detail))
                    session.progress.done(member.name, departure.detail, ok=False)
