# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors meant for the person who started the daemon or called its API.

Each names the key it is about and, where there is one, the way out. Anything else that escapes is
a bug and is shown as one.
"""

from __future__ import annotations

from typing import ClassVar


class DaemonError(Exception):
    """Base of what a user is meant to see; never raised itself."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        way_out = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{way_out}"


class BadInput(DaemonError):  # noqa: N818 -- the name says what happened
    """What was asked for cannot be meant: a wrong option, key, name or size."""

    exit_code = 2
    http_status = 400


class HostUnable(DaemonError):  # noqa: N818
    """This host cannot do it: memory, room on a disk, a right or a lock is missing."""

    exit_code = 4
    http_status = 507


class NotFound(DaemonError):  # noqa: N818
    """No client has this name."""

    exit_code = 2
    http_status = 404


class Conflict(DaemonError):  # noqa: N818
    """The client exists and differs from what was asked for."""

    exit_code = 2
    http_status = 409
