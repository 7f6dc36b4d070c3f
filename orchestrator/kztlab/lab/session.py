# SPDX-License-Identifier: GPL-2.0-or-later
"""What one command that changes a lab has in its hands while it holds the lab's lock."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kztlab.errors import GuestLost
    from kztlab.guest import Shell
    from kztlab.hypervisor import GuestState, Hypervisor
    from kztlab.lab.keys import Keys
    from kztlab.lab.progress import Progress
    from kztlab.lab.record import GuestRecord, LabRecord
    from kztlab.places import Places


@dataclass(slots=True)
class Member:
    """A guest of the lab that is up, or was."""

    record: GuestRecord
    state: GuestState
    shell: Shell
    loss: GuestLost | None = None

    @property
    def name(self) -> str:
        return self.record.name

    def lose(self, why: GuestLost) -> None:
        """It is gone: whoever waits for it by SSH hears of it now."""
        self.loss = why
        self.shell.close()


@dataclass(slots=True)
class Session:
    """A lab in the hands of `up` or `run`."""

    places: Places
    hypervisor: Hypervisor
    progress: Progress
    record: LabRecord
    keys: Keys
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the command is interrupted: nothing new is started from then on."""
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def save(self) -> None:
        with self._writing:
            self.record.save(self.places)
