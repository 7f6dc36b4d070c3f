# SPDX-License-Identifier: GPL-2.0-or-later
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kztmem import statedir
from kztmem.errors import HostUnable
from kztmem.settings import ClientSettings, Terms
from kztmem.statedir import Record, StateDir

RECORD = Record(
    version="0.1.0",
    memory=1 << 20,
    codec="lzo",
    persistent="xvmalloc",
    ephemeral="zbud",
    dedup="domain:x",
    sockets="/s",
    boot_id="b",
    arena="/shm/k",
)


LIMITED = ClientSettings(
    swap=4096, dedup="client", terms=Terms(weight=2, cap=1 << 20, reservation=0)
)


def test_records_and_clients_last(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert state.record() is None
    assert state.clients() is None
    state.write_record(RECORD)
    clients = {"a": ClientSettings(swap=8192), "b": LIMITED}
    state.write_clients(clients)
    state.close()

    again = StateDir(tmp_path)
    assert again.record() == RECORD
    assert again.clients() == clients
    again.write_record(replace(RECORD, arena=None))
    assert again.record() == replace(RECORD, arena=None)
    again.close()


NO_TERMS = '"terms": {"weight": null, "cap": null, "reservation": null}'


@pytest.mark.parametrize(
    "content",
    [
        '{"a": {"swap": 5000, "dedup": null, ' + NO_TERMS + "}}",
        '{"A": {"swap": 8192, "dedup": null, ' + NO_TERMS + "}}",
        '{"a": {"swap": "8192", "dedup": null, ' + NO_TERMS + "}}",
        '{"a": {"swap": true, "dedup": null, ' + NO_TERMS + "}}",
        '{"a": {"swap": -4096, "dedup": null, ' + NO_TERMS + "}}",
        '{"a": {"swap": 8192, "dedup": "on", ' + NO_TERMS + "}}",
        '{"a": {"swap": 8192, "dedup": 1, ' + NO_TERMS + "}}",
        '{"a": {"swap": 8192, ' + NO_TERMS + "}}",
        '{"a": {"swap": 8192, "dedup": null}}',
        '{"a": {"swap": 8192, "dedup": null, "terms": 1}}',
        '{"a": {"swap": 8192, "dedup": null, "terms": {}}}',
        '{"a": {"swap": 8192, "dedup": null, ' + NO_TERMS.replace("null", "0", 1) + "}}",
        '{"a": {"swap": 8192, "dedup": null, ' + NO_TERMS.replace("null", '"1MiB"') + "}}",
        '{"a": 8192}',
    ],
)
def test_impossible_clients_are_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / "clients.json").write_text(content)
    state = StateDir(tmp_path)
    with pytest.raises(HostUnable, match=r"clients\.json is damaged"):
        state.clients()
    state.close()


@pytest.mark.parametrize("content", ["{}", '{"version": 1}'])
def test_an_impossible_record_is_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    state = StateDir(tmp_path)
    with pytest.raises(HostUnable, match=r"state\.json is damaged"):
        state.record()
    state.close()


def test_the_second_owner_hears_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statedir, "LOCK_WAIT", 0.05)
    first = StateDir(tmp_path)
    first.write_owner(4711)
    with pytest.raises(HostUnable, match=r"pid 4711 .*kill 4711"):
        StateDir(tmp_path)
    first.close()
    StateDir(tmp_path).close()


def test_a_dying_owner_is_waited_for(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kztmem.statedir import StateDir\n"
        "state = StateDir(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stdout.readline() == b"locked\n"
        # Most likely ends the owner while this test waits for it; either way it must get the lock.
        threading.Timer(0.1, owner.kill).start()
        StateDir(tmp_path).close()


def test_a_child_shares_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A serving process outlives its supervisor and still keeps others out."""
    monkeypatch.setattr(statedir, "LOCK_WAIT", 0.05)
    state = StateDir(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[state._lock]) as child:
        state.close()
        with pytest.raises(HostUnable, match="served by another kztmemd"):
            StateDir(tmp_path)
        child.communicate()
    StateDir(tmp_path).close()
