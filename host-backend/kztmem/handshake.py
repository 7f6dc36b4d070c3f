# SPDX-License-Identifier: GPL-2.0-or-later
"""One line from the daemon to the command that started it: it serves, or why it does not."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from kztmem.errors import BadInput, DaemonError, HostUnable

if TYPE_CHECKING:
    from collections.abc import Mapping


class Sender:
    """The daemon's end, kept over restarts: when nobody listens any more, nothing is said."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def ready(self, line: Mapping[str, Any], warnings: list[str]) -> None:
        """Says that it serves."""
        self._send({"ready": line, "warnings": warnings})

    def refuse(self, error: DaemonError) -> None:
        """Says why it will not serve."""
        self._send({"error": str(error), "exit_code": error.exit_code})

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")


def receive(descriptor: int) -> tuple[dict[str, Any], list[str]] | None:
    """Waits for the line: the ready line and warnings; None if the daemon died without one.

    Raises what the daemon refused with.
    """
    with open(descriptor, encoding="utf-8") as pipe:
        line = pipe.readline()
    if not line:
        return None
    message = json.loads(line)
    if "error" in message:
        kind = BadInput if message["exit_code"] == BadInput.exit_code else HostUnable
        raise kind(message["error"])
    return message["ready"], message["warnings"]
