# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a guest, over one SSH connection that is kept.

The first command on a connection costs an emulated guest seconds, the later ones a fraction of one,
and any number run side by side from several threads.

SSH has no dependable way to end a command whose client loses patience: closing its channel leaves
it running. So each command tells its process group first, and is ended by it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import shlex
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import paramiko
from paramiko.pkey import UnknownKeyType

from kztlab.errors import BadInput, GuestLost, HostUnable, KztlabError, WorkloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

# Errors are raised; paramiko would print them as well, with a traceback of its own thread.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

OUTPUT_KEPT = 16 << 20
"""Bytes kept of each of a command's outputs; a hostile guest can send without end."""

LINE_KEPT = 1 << 20
"""Bytes after which a streamed line is cut."""

_KEEPALIVE_SECONDS = 15
_OPEN_SECONDS = 60.0
_KILL_SECONDS = 10.0
_SLICE_SECONDS = 0.2
_NO_STATUS = 255
_PID_DIGITS = 10
_CHUNK = 64 << 10


class Unreachable(GuestLost):
    """SSH does not answer, as is normal while a guest boots."""


class CommandTimeout(WorkloadFailed):
    """A command ran longer than it may and was ended."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    exit: int
    """Its exit status; 128 + N after signal N, 255 if it took the shell around it along."""
    stdout: str
    stderr: str


class Shell:
    """An SSH connection to a guest. Methods may be called from several threads at once."""

    def __init__(self, transport: paramiko.Transport, name: str) -> None:
        self._transport = transport
        self._name = name

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        key: Path,
        host_key: str,
        timeout: float,
        user: str = "root",
        waiting: Callable[[], None] = lambda: None,
    ) -> Self:
        """Log in with the private key `key`, to a host that shows exactly `host_key`.

        `host_key` is a public key as in a .pub file. `waiting` is called several times a second
        and may raise to give up. Raises `Unreachable` if SSH does not answer within `timeout`
        seconds, `GuestLost` if it is not this host or does not let us in.
        """
        ours, theirs = _private_key(key), _public_key(host_key)
        name = f"{host}:{port}"
        try:
            sock = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise Unreachable(f"SSH at {name} does not answer: {error}") from error
        transport = paramiko.Transport(sock)
        shell = cls(transport, name)
        try:
            shell._negotiate(theirs, timeout, waiting)
            shell._log_in(user, ours, timeout, waiting)
        except (paramiko.SSHException, EOFError, OSError) as error:
            shell.close()
            raise Unreachable(f"SSH at {name} does not answer: {error!r}") from error
        except BaseException:
            shell.close()
            raise
        transport.set_keepalive(_KEEPALIVE_SECONDS)
        return shell

    def _negotiate(
        self, expected: paramiko.PKey, timeout: float, waiting: Callable[[], None]
    ) -> None:
        transport = self._transport
        transport.banner_timeout = timeout
        transport.get_security_options().key_types = (expected.get_name(),)
        step = threading.Event()
        transport.start_client(event=step)
        _await(transport, step, timeout, waiting)
        if transport.get_remote_server_key() != expected:
            raise GuestLost(
                f"{self._name} shows another SSH host key than this lab's",
                hint="something else listens there",
            )

    def _log_in(
        self, user: str, key: paramiko.PKey, timeout: float, waiting: Callable[[], None]
    ) -> None:
        refused = GuestLost(f"{self._name} does not let {user} in with the lab's key")
        step = threading.Event()
        try:
            self._transport.auth_publickey(user, key, event=step)
            _await(self._transport, step, timeout, waiting)
        except paramiko.AuthenticationException as error:
            raise refused from error
        if not self._transport.is_authenticated():
            raise refused

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
        """End the connection; whoever waits for a command on it gets `GuestLost`."""
        self._transport.close()

    def run(
        self,
        command: str,
        *,
        timeout: float | None = None,
        input: str = "",  # noqa: A002  -- named as in subprocess
        waiting: Callable[[], None] = lambda: None,
    ) -> Completed:
        """Run a shell command, with `input` (a script's size at most) on its standard input.

        `waiting` is called several times a second and may raise to give up. Raises
        `CommandTimeout` after `timeout` seconds, `GuestLost` if the connection breaks. However this
        ends, the command does not run on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with _Remote(self._transport, self._name, command, waiting=waiting) as remote:
            remote.feed(input)
            stderr = bytearray()
            errors = threading.Thread(target=remote.collect_stderr, args=(stderr,), daemon=True)
            errors.start()
            stdout = bytearray()
            while chunk := remote.read(deadline):
                stdout += chunk[: OUTPUT_KEPT - len(stdout)]
            status = remote.status(deadline)
            errors.join(_KILL_SECONDS)
        return Completed(
            status, stdout.decode(errors="replace"), bytes(stderr).decode(errors="replace")
        )

    def stream(self, command: str) -> Iterator[str]:
        """The lines that a command prints, as they come; standard error among them.

        Leaving the iteration ends the command. Raises `GuestLost` if the connection breaks,
        `WorkloadFailed` if the command ends with another exit status than 0.
        """
        with _Remote(self._transport, self._name, command, combined=True) as remote:
            remote.feed("")
            rest = b""
            while chunk := remote.read(None):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_KEPT:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    yield line[:LINE_KEPT].decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
            status = remote.status(None)
            if status:
                raise WorkloadFailed(f"{command!r} in the guest ended with exit status {status}")


class _Remote:
    """A command on its way; leaving the context before its end kills it."""

    def __init__(
        self,
        transport: paramiko.Transport,
        name: str,
        command: str,
        *,
        combined: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._waiting = waiting
        self._transport = transport
        self._name = name
        self._command = command
        # A shell around it, so that a signal that ends the command becomes an exit status.
        script = f"echo $$; sh -c {shlex.quote(command)}; exit $?"
        try:
            self._channel = transport.open_session(timeout=_OPEN_SECONDS)
            self._channel.set_combine_stderr(combined)
            self._channel.settimeout(_SLICE_SECONDS)
            self._channel.exec_command(f"exec sh -c {shlex.quote(script)}")
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost() from error
        self._ended = False
        self._early = b""
        self._group: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._ended:
            self._kill()
        self._channel.close()

    def feed(self, text: str) -> None:
        """Send all of the command's standard input."""
        try:
            self._channel.settimeout(None)
            self._channel.sendall(text.encode())
            self._channel.shutdown_write()
            self._channel.settimeout(_SLICE_SECONDS)
        except OSError:
            # The command has closed its input or ended: its exit status tells, not this.
            self._channel.settimeout(_SLICE_SECONDS)

    def read(self, deadline: float | None) -> bytes:
        """Some output, empty at its end."""
        return self._first(deadline) or self._receive(deadline)

    def _first(self, deadline: float | None) -> bytes:
        """Learn the process group if it is not known yet; what came behind it, if anything did."""
        while self._group is None:
            more = self._receive(deadline)
            head, found, rest = (self._early + more).partition(b"\n")
            if found and head.isdigit() and len(head) <= _PID_DIGITS:
                self._group = int(head)
                return rest
            if not more or len(head) > _CHUNK:
                return head + rest  # no POSIX shell there: let its words be seen
            self._early = head
        return b""

    def collect_stderr(self, into: bytearray) -> None:
        """Read standard error to its end."""
        while True:
            try:
                chunk = self._channel.recv_stderr(_CHUNK)
            except TimeoutError:
                continue
            if not chunk:
                return
            into += chunk[: OUTPUT_KEPT - len(into)]

    def status(self, deadline: float | None) -> int:
        """The exit status, once all output is read."""
        while not self._channel.status_event.wait(_SLICE_SECONDS):
            self._check(deadline)
        status = self._channel.recv_exit_status()
        if status < 0 and not self._transport.is_active():
            raise self._lost()
        self._ended = True
        return status if status >= 0 else _NO_STATUS

    def _receive(self, deadline: float | None) -> bytes:
        while True:
            self._check(deadline)
            with contextlib.suppress(TimeoutError):
                return self._channel.recv(_CHUNK)

    def _check(self, deadline: float | None) -> None:
        self._waiting()
        if not self._transport.is_active():
            raise self._lost()
        if deadline is not None and time.monotonic() >= deadline:
            raise CommandTimeout(f"{self._command!r} in the guest took too long and was ended")

    def _kill(self) -> None:
        self._waiting = lambda: None  # whoever gave up has been heard
        if self._group is None:  # too crowded a guest to have said even that
            with contextlib.suppress(KztlabError):
                self._first(time.monotonic() + _KILL_SECONDS)
        if self._group is None or not self._transport.is_active():
            return
        group = f"-{self._group}"
        script = (
            f"kill -s TERM -- {group} || exit 0; i=0; "
            f"while kill -s 0 -- {group} && [ $((i += 1)) -le 10 ]; do sleep 0.1; done; "
            f"kill -s KILL -- {group}; exit 0"
        )
        try:
            channel = self._transport.open_session(timeout=_KILL_SECONDS)
            channel.exec_command(f"exec sh -c {shlex.quote(script)} 2>/dev/null")
            channel.status_event.wait(_KILL_SECONDS)
            channel.close()
        except (paramiko.SSHException, EOFError, OSError):
            return  # the guest is going away, and the command with it

    def _lost(self) -> GuestLost:
        return GuestLost(f"the SSH connection to the guest at {self._name} broke")


def has_banner(host: str, port: int, timeout: float, waiting: Callable[[], None]) -> bool:
    """Whether an SSH server greets there. QEMU's forward accepts long before the guest does."""
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection((host, port), timeout) as sock:
            sock.settimeout(_SLICE_SECONDS)
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    return sock.recv(4) == b"SSH-"
                waiting()
    except OSError:
        pass
    return False


def _private_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(str(path))
    except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
        raise HostUnable(f"cannot read the private SSH key {path}: {error}") from error


def _public_key(text: str) -> paramiko.PKey:
    try:
        kind, encoded = text.split()[:2]
        return paramiko.PKey.from_type_string(kind, base64.b64decode(encoded, validate=True))
    except (ValueError, binascii.Error, paramiko.SSHException, UnknownKeyType) as error:
        raise BadInput(f"not a public SSH key: {text[:80]!r}") from error


def _await(
    transport: paramiko.Transport,
    step: threading.Event,
    timeout: float,
    waiting: Callable[[], None],
) -> None:
    """Wait for a step of paramiko's own thread, and raise what it failed with."""
    deadline = time.monotonic() + timeout
    while not step.wait(_SLICE_SECONDS):
        waiting()
        if not transport.is_active():
            break
        if time.monotonic() >= deadline:
            raise paramiko.SSHException("no answer in time")
    error = transport.get_exception()
    if error is not None:
        raise error
