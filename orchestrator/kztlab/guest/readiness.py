# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for a guest, as a list of named requirements that are met one after the other.

Whoever waits always knows for what, for how long and until when; and if it does not come, what to
look at: each requirement has a hint, and the error carries the end of the guest's console.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from kztlab.errors import GuestLost, HostUnable
from kztlab.guest.shell import Shell, Unreachable, has_banner
from kztlab.hypervisor import console

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kztlab.hypervisor import Departure, GuestState

_ROOM = 1 << 20
"""Bytes without which a boot is hopeless: its console log and its overlay grow as it goes on."""

_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_BANNER_SECONDS = (0.5, 5.0)
"""How long to wait for a banner, at first and at most: a connection that QEMU took before the guest
had a network is never answered, while a crowded guest needs seconds for its greeting."""


class Progress(Protocol):
    """Told several times a second, from the waiting thread; what it raises ends the wait."""

    def __call__(self, step: str, elapsed: float, limit: float, /) -> None:
        """The wait is at `step`; `elapsed` of `limit` seconds are over."""


class Keys(Protocol):
    """A lab's SSH keys."""

    @property
    def client(self) -> Path:
        """The private key that the guests let in."""

    @property
    def host_key(self) -> str:
        """The public key that the guests show."""


class Watcher(Protocol):
    """What the wait needs of a `Hypervisor`."""

    def departure(self, guest: GuestState) -> Departure | None:
        """Why the guest is gone."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that has to become true."""

    name: str
    hint: str
    check: Callable[[], bool]
    """Whether it is true now; asked again and again, so it must not take long."""


def wait_ready(
    watcher: Watcher, guest: GuestState, keys: Keys, *, limit: float, progress: Progress
) -> Shell:
    """Wait until the guest lets us in, at most `limit` seconds, and return the way in.

    Raises `GuestLost` if it takes longer, and at once if the guest goes away; `HostUnable` if the
    disk that it writes to is full.
    """
    shells: list[Shell] = []
    wait = Wait(watcher, guest, limit=limit, progress=progress)

    def login() -> bool:
        try:
            shells.append(
                Shell.connect(
                    "127.0.0.1",
                    guest.ssh_port,
                    key=keys.client,
                    host_key=keys.host_key,
                    timeout=wait.left(),
                    waiting=partial(wait.tell, "SSH login"),
                )
            )
        except Unreachable:
            return False
        return True

    patience, most = _BANNER_SECONDS

    def banner() -> bool:
        nonlocal patience
        waiting = partial(wait.tell, "SSH banner")
        if has_banner("127.0.0.1", guest.ssh_port, patience, waiting):
            return True
        patience = min(patience * 1.5, most)
        return False

    wait.until(
        [
            Requirement(
                "kernel console",
                "the kernel has said nothing: it may not run with this accelerator, try tcg",
                lambda: bool(console.tail(guest.console_log, 1)),
            ),
            Requirement(
                "SSH banner",
                "the guest's sshd has not come up: the console shows how far the boot got",
                banner,
            ),
            Requirement("SSH login", "sshd answers but logging in does not come to an end", login),
        ]
    )
    return shells[0]


class Wait:
    """A wait for one guest with one limit, over any number of requirements."""

    def __init__(
        self, watcher: Watcher, guest: GuestState, *, limit: float, progress: Progress
    ) -> None:
        self._watcher = watcher
        self._guest = guest
        self._limit = limit
        self._progress = progress
        self._begin = time.monotonic()
        self._next_look = self._begin

    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._begin + self._limit - time.monotonic())

    def until(self, requirements: Sequence[Requirement]) -> None:
        """Return once each requirement has been met, in their order."""
        for requirement in requirements:
            self.tell(requirement.name)
            while not requirement.check():
                self.tell(requirement.name)
                if not self.left():
                    raise self._lost(requirement)
                time.sleep(_POLL_SECONDS)

    def tell(self, step: str) -> None:
        """Say where the wait is, and notice if the guest has gone or has no disk to write to."""
        now = time.monotonic()
        self._progress(step, now - self._begin, self._limit)
        if now >= self._next_look:
            self._next_look = now + _WATCH_SECONDS
            _check_room(self._guest.console_log.parent, step)
            departure = self._watcher.departure(self._guest)
            if departure is not None:
                when = f"at step '{step}' after {now - self._begin:.1f} s"
                raise lost(self._guest, f"{departure.detail}, {when}")

    def _lost(self, requirement: Requirement) -> GuestLost:
        return lost(
            self._guest,
            f"was not ready after {self._limit:.0f} s: it stopped at step '{requirement.name}'",
            hint=requirement.hint,
        )


def _check_room(folder: Path, step: str) -> None:
    """Raise `HostUnable` if the guest's disk and console cannot be written any more."""
    if shutil.disk_usage(folder).free < _ROOM:
        raise HostUnable(
            f"the disk that has {folder} is full, at step '{step}'",
            hint="make room, or set KZTLAB_STATE to a folder on another disk",
        )


def lost(guest: GuestState, predicate: str, *, hint: str | None = None) -> GuestLost:
    """The error for a guest that is gone or stuck, with the end of its console and where it is."""
    lines = console.tail(guest.console_log) or ["(nothing)"]
    said = "\n".join(f"    | {line}" for line in lines)
    head = f"guest {guest.guest} {predicate}\n  its console ends with:"
    return GuestLost(f"{head}\n{said}\n  in {guest.console_log}", hint=hint)
