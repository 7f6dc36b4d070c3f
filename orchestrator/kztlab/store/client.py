# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP API of kztmemd, over its unix socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from kztlab.errors import HostUnable

if TYPE_CHECKING:
    from types import TracebackType

ANSWER_LIMIT = 10.0
"""Seconds for one answer. The daemon's API answers in milliseconds; a killed one is back within a
second, which callers bridge by asking again."""


class StoreUnreachable(HostUnable):
    """Nobody answers on the store's socket."""


class StoreRefused(HostUnable):
    """The store answered, and said no."""

    def __init__(self, status: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"the store refused: {message}", hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Client:
    """One client of the store: one guest."""

    name: str
    swap_bytes: int
    nbd: Path
    """Socket that speaks NBD."""
    relay: Path
    """Socket for the virtio-serial port through which the guest's agent reaches the same device."""
    vhost: Path
    """Socket of a vhost-user block device: the same device, out of the guest's memory."""
    tmem: Path
    """Socket for the port through which the guest's kernel asks for pools of its own."""
    ctl: Path
    """Socket for the port that takes the agent's reports."""


class StoreClient:
    """One connection to one kztmemd. Not for several threads at once: each opens its own."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self._http = httpx.Client(
            # There is no TLS here; to get ready for it would take longer than all the rest.
            transport=httpx.HTTPTransport(uds=str(address), verify=False),
            base_url="http://kztmemd",
            timeout=ANSWER_LIMIT,
        )

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
        self._http.close()

    def status(self) -> dict[str, Any]:
        """The daemon's `GET /v1/status` as it is: version, arena, clients with their counters."""
        return self._ask("GET", "/v1/status")

    def add_client(
        self,
        name: str,
        swap_bytes: int,
        *,
        dedup: str,
        weight: int = 1,
        cap: int | None = None,
        reservation: int | None = None,
    ) -> Client:
        """Make sure that there is a client of this name that is like this.

        Raises `StoreRefused` if there is another one, or no room for one more.
        """
        body = {
            "name": name,
            "swap": swap_bytes,
            "dedup": dedup,
            "weight": weight,
            "cap": cap or "none",
            "reservation": reservation or "none",
        }
        answer = self._ask("POST", "/v1/clients", body)
        try:
            return _client(answer)
        except (KeyError, ValueError) as error:
            raise HostUnable(
                f"what answers on {self.address} describes no client: {answer}",
                hint="is it a kztmemd, of this version?",
            ) from error

    def remove_client(self, name: str) -> None:
        """Destroy a client with all its pages; one that is not there is fine."""
        try:
            self._ask("DELETE", f"/v1/clients/{name}")
        except StoreRefused as refused:
            if refused.status != httpx.codes.NOT_FOUND:
                raise

    def _knock(self) -> None:
        """Raise `OSError` if nobody listens: httpx would leave the socket of its attempt open."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ANSWER_LIMIT)  # one that is stuck stops taking connections
            probe.connect(bytes(self.address))

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            self._knock()
            answer = self._http.request(method, path, json=body)
        except (OSError, httpx.TransportError) as error:
            raise StoreUnreachable(
                f"the store does not answer on {self.address}: {error}",
                hint="is it running? a lab's own store is started by `kztlab up`",
            ) from error
        try:
            content = answer.json() if answer.content else {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise StoreRefused(answer.status_code, f"{method} {path} gave no JSON object")
        if answer.is_error:
            message = str(content.get("error") or f"{method} {path}: status {answer.status_code}")
            raise StoreRefused(answer.status_code, message, hint=content.get("hint"))
        return content


def _client(content: dict[str, Any]) -> Client:
    sockets = {kind: Path(str(content[kind])) for kind in ("nbd", "relay", "vhost", "tmem", "ctl")}
    return Client(str(content["name"]), int(content["swap_bytes"]), **sockets)
