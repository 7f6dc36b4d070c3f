# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, as the exit codes of the command line tell it apart.

Every error that a user is meant to see is a `KztlabError`: one sentence that says what happened
and, where there is one, a hint that says what to do about it. Anything else that escapes is a bug.
"""

# ruff: noqa: N818  -- the names say what happened to the user's lab, which is the point of them

from __future__ import annotations


class KztlabError(Exception):
    """Base of all errors shown to the user; never raised itself."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class WorkloadFailed(KztlabError):
    """A workload ran and did not succeed: the guest is there, its result is bad."""

    exit_code = 1


class BadInput(KztlabError):
    """What the user asked for cannot be meant: a wrong file, key, name or option."""

    exit_code = 2


class GuestLost(KztlabError):
    """A guest panicked, was killed, never became ready or stopped to answer."""

    exit_code = 3


class HostUnable(KztlabError):
    """This machine cannot do it: a package, a right, a port or room is missing."""

    exit_code = 4


class Interrupted(KztlabError):
    """The user stopped the command; what it had started is still listed."""

    exit_code = 130
