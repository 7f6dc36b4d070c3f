# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a guest, and SSH servers that are none."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput, GuestLost, Interrupted, WorkloadFailed
from kztlab.guest import CommandTimeout, Shell
from kztlab.guest.shell import OUTPUT_KEPT, Unreachable, has_banner
from kztlab.lab.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Machines
    from tests.guest.conftest import Ready

needs_guest = pytest.mark.guest


def running(shell: Shell, command: str) -> bool:
    """Whether a process with this command line runs in the guest."""
    script = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p; echo; done 2>/dev/null"
    return f"{command} " in shell.run(script).stdout.splitlines()


def gone(shell: Shell, command: str) -> bool:
    deadline = time.monotonic() + 30
    while running(shell, command):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@needs_guest
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("true", 0),
        ("exit 3", 3),
        ("no-such-command", 127),
        ("kill -9 $$", 137),
        ("kill -TERM $$; sleep 9", 143),
        ("(", 2),
        ("exec sh -c 'exit 4'", 4),
    ],
)
def test_exit_status_is_the_commands(ready: Ready, command: str, status: int) -> None:
    assert ready.shell.run(command, timeout=60).exit == status


@needs_guest
def test_input_and_both_outputs(ready: Ready) -> None:
    done = ready.shell.run("cat; echo 'it''s' >&2; printf end", input="é\nx", timeout=60)
    assert (done.stdout, done.stderr, done.exit) == ("é\nxend", "its\n", 0)


@needs_guest
def test_dollar_dollar_is_the_process_that_runs_the_command(ready: Ready) -> None:
    mine, runs = ready.shell.run("echo $$; exec cut -d' ' -f1 /proc/self/stat").stdout.split()
    assert mine == runs


@needs_guest
def test_late_command_is_ended_with_its_children(ready: Ready) -> None:
    with pytest.raises(CommandTimeout, match="took too long"):
        ready.shell.run("sleep 4242 & sleep 4243", timeout=2)
    assert gone(ready.shell, "sleep 4242")
    assert gone(ready.shell, "sleep 4243")


@needs_guest
def test_command_that_ignores_signals_is_ended_too(ready: Ready) -> None:
    with pytest.raises(CommandTimeout):
        ready.shell.run("trap '' TERM; while :; do sleep 4244; done", timeout=2)
    assert gone(ready.shell, "sleep 4244")


@needs_guest
def test_command_that_never_falls_silent_is_ended_too(ready: Ready) -> None:
    with pytest.raises(CommandTimeout):
        ready.shell.run("while :; do echo; done", timeout=2)


@needs_guest
def test_interrupted_command_is_ended_even_before_its_first_word(ready: Ready) -> None:
    def enough() -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        ready.shell.run("sleep 4248", waiting=enough)
    assert gone(ready.shell, "sleep 4248")


@needs_guest
def test_endless_output_fills_no_memory(ready: Ready) -> None:
    done = ready.shell.run(f"head -c {OUTPUT_KEPT + 100_000} /dev/zero; echo end >&2", timeout=120)
    assert len(done.stdout) == OUTPUT_KEPT
    assert done.stderr == "end\n"


@needs_guest
def test_stream_yields_lines_as_they_come_and_ends_its_command(ready: Ready) -> None:
    lines = iter(ready.shell.stream("echo one; printf 'two\\nthr'; echo ee >&2; sleep 4245"))
    assert [next(lines) for _ in range(2)] == ["one", "two"]
    assert running(ready.shell, "sleep 4245")
    lines.close()  # type: ignore[attr-defined]
    assert gone(ready.shell, "sleep 4245")


@needs_guest
def test_stream_ends_with_its_command(ready: Ready) -> None:
    assert list(ready.shell.stream("printf 'one\\n\\nlast'")) == ["one", "", "last"]
    with pytest.raises(WorkloadFailed, match="exit status 3"):
        list(ready.shell.stream("exit 3"))


@needs_guest
def test_commands_run_side_by_side(ready: Ready) -> None:
    ready.shell.run("mkfifo /tmp/a /tmp/b")
    each_waits_for_the_other = [
        "echo first >/tmp/a; cat /tmp/b",
        "cat /tmp/a; echo second >/tmp/b",
    ]
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(ready.shell.run, each_waits_for_the_other))
    assert [each.stdout for each in done] == ["second\n", "first\n"]


@needs_guest
def test_guest_that_goes_away_ends_what_waits_for_it(doomed: Ready, machines: Machines) -> None:
    end = threading.Timer(1, machines.hypervisor.destroy, [machines.lab, "doomed"])
    end.start()
    with doomed.shell, pytest.raises(GuestLost, match="broke"):
        doomed.shell.run("sleep 4246")
    end.join()
    with pytest.raises(GuestLost):
        doomed.shell.run("true")


@needs_guest
def test_closing_ends_what_waits(ready: Ready) -> None:
    shell = Shell.connect(
        "127.0.0.1",
        ready.guest.ssh_port,
        key=ready.keys.client,
        host_key=ready.keys.host_key,
        timeout=60,
    )
    threading.Timer(1, shell.close).start()
    with pytest.raises(GuestLost):
        shell.run("sleep 4247")


@needs_guest
def test_stranger_is_not_let_in(ready: Ready, tmp_path: Path) -> None:
    with pytest.raises(GuestLost, match="does not let root in"):
        Shell.connect(
            "127.0.0.1",
            ready.guest.ssh_port,
            key=Keys.of(tmp_path / "keys").client,
            host_key=ready.keys.host_key,
            timeout=60,
        )


@pytest.fixture
def mute() -> Iterator[int]:
    """A port that takes connections and says nothing, like QEMU's before the guest is up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def connect(port: int, folder: Path, **options: object) -> Shell:
    keys = Keys.of(folder / "keys")
    arguments = {"key": keys.client, "host_key": keys.host_key, "timeout": 1.0, **options}
    return Shell.connect("127.0.0.1", port, **arguments)  # type: ignore[arg-type]


def test_mute_port_is_no_ssh(mute: int, tmp_path: Path) -> None:
    assert has_banner("127.0.0.1", mute, 0.3, lambda: None) is False
    with pytest.raises(Unreachable, match="does not answer"):
        connect(mute, tmp_path)


def test_closed_port_is_no_ssh(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert has_banner("127.0.0.1", port, 0.3, lambda: None) is False
    with pytest.raises(Unreachable, match="does not answer"):
        connect(port, tmp_path)


def test_waiting_for_a_mute_port_can_be_interrupted(mute: int, tmp_path: Path) -> None:
    def enough() -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        connect(mute, tmp_path, timeout=3600, waiting=enough)
    with pytest.raises(Interrupted):
        has_banner("127.0.0.1", mute, 3600, enough)


@pytest.mark.parametrize("key", ["", "ssh-ed25519", "ssh-ed25519 !", "no-such-kind AAAA"])
def test_damaged_host_key_is_named(mute: int, tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInput, match="not a public SSH key"):
        connect(mute, tmp_path, host_key=key)
