# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon's life from start to removal, with everything that gets in its way."""

import fcntl
import json
import os
import pwd
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import nbd
from tests.support.daemon import COMMAND, Daemon, child_of, kill, remove, try_run, wait_for_end
from tests.support.load import PAGE, page

pytestmark = pytest.mark.fault

CLIENT = ("--client", "a:1MiB")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def daemon(state: Path) -> Iterator[Daemon]:
    """A daemon with a client `a`, not started."""
    with Daemon(state, *CLIENT) as daemon:
        yield daemon


def _arena(daemon: Daemon) -> Path:
    return Path(json.loads((daemon.state / "state.json").read_text())["arena"])


def _write(daemon: Daemon) -> None:
    with nbd.Client(daemon.nbd("a")) as device:
        device.write(0, page(0, 1))


def _is_there(daemon: Daemon) -> bool:
    with nbd.Client(daemon.nbd("a")) as device:
        return device.read(0, PAGE) == page(0, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_the_foreground_and_the_pages_stay(
    daemon: Daemon, number: signal.Signals, code: int
) -> None:
    _write(daemon.start())
    daemon.process.send_signal(number)
    assert daemon.wait() == code
    assert not Path(daemon.ready["api"]).exists()
    assert not daemon.nbd("a").exists()
    assert _is_there(daemon.start())
    assert daemon.status()["recovery"]["reason"] == "recovered"


def test_stopping_does_not_wait_for_idle_connections(daemon: Daemon) -> None:
    daemon.start()
    idle = [nbd.Connection(daemon.nbd("a")) for _ in range(3)]
    with daemon.http() as api:
        api.get("/v1/status")
        daemon.process.terminate()
        assert daemon.wait() == 0
    for connection in idle:
        with pytest.raises(ConnectionError):
            connection.receive(1)
        connection.close()


@pytest.mark.parametrize("whom", ["supervisor_pid", "pid"])
def test_sigterm_to_either_process_stops_both(daemon: Daemon, whom: str) -> None:
    _write(daemon.detach())
    status = daemon.status()
    os.kill(status[whom], signal.SIGTERM)
    for process in ("supervisor_pid", "pid"):
        wait_for_end(status[process])
    assert not Path(daemon.ready["api"]).exists()
    assert _is_there(daemon.detach())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_detached_daemon_does_not_hear_the_terminal(
    daemon: Daemon, number: signal.Signals
) -> None:
    status = daemon.detach().status()
    for process in ("supervisor_pid", "pid"):
        assert os.getsid(status[process]) == status["supervisor_pid"]
        os.kill(status[process], number)
    again = daemon.status()
    assert (again["pid"], again["supervisor_pid"]) == (status["pid"], status["supervisor_pid"])
    assert all("supervisor" not in warning for warning in again["warnings"])


def test_a_detached_daemon_keeps_nothing_of_its_starter_open(daemon: Daemon) -> None:
    """Else `$(kztmemd ... --detach)` would wait for ever."""
    status = daemon.detach().status()
    for process in ("supervisor_pid", "pid"):
        opened = {link.readlink() for link in Path(f"/proc/{status[process]}/fd").iterdir()}
        assert not [path for path in opened if "/dev/pts" in str(path)]
        standard = [Path(f"/proc/{status[process]}/fd/{fd}").readlink() for fd in range(3)]
        assert standard == [Path("/dev/null"), Path("/dev/null"), daemon.state / "kztmemd.log"]


def test_ctrl_c_while_it_starts_leaves_nothing(daemon: Daemon, state: Path) -> None:
    state.mkdir(mode=0o700)
    with (state / "lock").open("w") as lock:
        # It has to wait for the lock: this is where it is interrupted.
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [*COMMAND, *daemon.options, "--detach"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starter:
            supervisor = child_of(starter.pid, session_leader=True)
            starter.send_signal(signal.SIGINT)
            assert starter.wait() == 130
            wait_for_end(supervisor)
    assert daemon.detach().status()["recovery"]["reason"] == "new"


def test_of_two_started_at_once_one_serves(daemon: Daemon) -> None:
    command = [*COMMAND, *daemon.options, "--detach"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 4]
    (line,) = [output for output, _ in answers if output]
    daemon.adopt(line)
    (refusal,) = [errors for _, errors in answers if "served by another" in errors]
    assert f"kill {daemon.ready['pid']}" in refusal
    assert daemon.status()["pid"] == daemon.ready["pid"]


def test_a_dying_owner_is_waited_for(daemon: Daemon) -> None:
    first = daemon.detach().status()
    os.kill(first["supervisor_pid"], signal.SIGTERM)
    second = daemon.detach().status()
    assert second["pid"] != first["pid"]


def test_removal_takes_arena_and_sockets_and_nothing_else(daemon: Daemon, state: Path) -> None:
    pids = daemon.detach().status()
    refused = try_run("--state", str(state), "--remove")
    assert refused.returncode == 4
    assert f"pid {pids['pid']}" in refused.stderr
    assert _arena(daemon).exists()
    arena = _arena(daemon)

    kill(pids["supervisor_pid"])
    kill(pids["pid"])
    (state / "clients" / "a" / "note").write_text("mine")
    remove(state)
    assert not arena.exists()
    left = {str(path.relative_to(state)) for path in state.rglob("*") if not path.is_dir()}
    assert left == {"lock", "state.json", "clients.json", "kztmemd.log", "clients/a/note"}
    remove(state)

    again = daemon.detach().status()
    assert again["recovery"]["reason"] == "new"
    assert [client["name"] for client in again["clients"]] == ["a"]


@pytest.mark.parametrize("option", [["--remove"], ["--memory", "64MiB"]])
@pytest.mark.parametrize("below", ["file/state", "loop/state"])
def test_a_state_directory_that_cannot_be_is_told_without_a_traceback(
    tmp_path: Path, below: str, option: list[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused = try_run("--state", str(tmp_path / below), *option)
    assert refused.returncode in {0, 2, 4}
    assert "Traceback" not in refused.stderr


def test_removal_needs_no_room_on_the_disk(daemon: Daemon, state: Path) -> None:
    _write(daemon.start())
    arena = _arena(daemon)
    daemon.kill()
    # No file may grow: the kernel refuses all writes, as on a full disk.
    command = ["prlimit", "--fsize=0", *COMMAND, "--state", str(state), "--remove"]
    subprocess.run(command, check=True, capture_output=True)
    assert not arena.exists()
    assert not _is_there(daemon.start())


def test_nothing_to_remove_is_fine_but_another_directory_is_not(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")
    refused = try_run("--state", str(tmp_path), "--remove")
    assert refused.returncode == 2
    assert "not a state directory" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reboot_is_said_and_counted(daemon: Daemon, state: Path) -> None:
    _write(daemon.start())
    daemon.kill()
    _arena(daemon).unlink()
    record = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(record | {"boot_id": "another"}))
    recovery = daemon.start().status()["recovery"]
    assert (recovery["reason"], recovery["pages"], recovery["losses"]) == ("reboot", 0, 1)
    assert not _is_there(daemon)
    daemon.kill()
    recovery = daemon.start().status()["recovery"]
    assert (recovery["reason"], recovery["losses"]) == ("recovered", 1)


def test_an_arena_that_vanished_is_said(daemon: Daemon) -> None:
    daemon.start()
    daemon.kill()
    _arena(daemon).unlink()
    assert daemon.start().status()["recovery"]["reason"] == "lost"


def test_another_codec_finds_the_pages_of_the_old_one(daemon: Daemon) -> None:
    _write(daemon.start())
    for codec in ("lz4", "zstd:3", "none", "lzo"):
        daemon.kill()
        daemon.options += ["--codec", codec]
        assert daemon.start().status()["codec"] == codec
        assert _is_there(daemon)
        _write(daemon)


def test_what_was_set_once_need_not_be_said_again(daemon: Daemon, state: Path) -> None:
    daemon.options += ["--codec", "lz4"]
    _write(daemon.start())
    daemon.kill()
    daemon.options = ["--state", str(state)]
    status = daemon.start().status()
    assert status["codec"] == "lz4"
    assert status["arena"]["limit_bytes"] == 64 << 20
    assert _is_there(daemon)


def test_more_memory_is_taken_and_less_than_is_held_refused(daemon: Daemon) -> None:
    daemon.options += ["--client", "b:4MiB"]
    _write(daemon.start())
    with nbd.Client(daemon.nbd("b")) as device:
        for index in range(400):
            device.write(index * PAGE, os.urandom(PAGE))
    daemon.kill()
    daemon.options += ["--memory", "128MiB"]
    assert daemon.start().status()["arena"]["limit_bytes"] == 128 << 20
    assert _is_there(daemon)
    daemon.kill()

    refused = try_run(*daemon.options, "--memory", "1MiB")
    assert refused.returncode == 4
    assert "--memory" in refused.stderr
    assert _is_there(daemon.start())


def test_pages_go_on_to_be_shared_after_a_kill(daemon: Daemon) -> None:
    daemon.options += ["--client", "b:1MiB", "--dedup", "domain:lab"]
    daemon.start()
    with daemon.http() as api:
        api.post("/v1/clients", json={"name": "c", "swap": "1MiB", "dedup": "client"})

    def device_of(client: str) -> Path:
        return daemon.nbd("a").parents[1] / client / "nbd.sock"

    def write(client: str, seed: int) -> int:
        """A page's worth of noise; how many pages share then."""
        with nbd.Client(device_of(client)) as device:
            device.write(seed * PAGE, random.Random(seed).randbytes(PAGE))
        shared = daemon.status()["arena"]["duplicate_pages"]
        assert isinstance(shared, int)
        return shared

    assert [write(client, 1) for client in "acb"] == [0, 0, 1]
    daemon.kill()
    # What was said the last time holds.
    del daemon.options[-2:]
    assert daemon.start().status()["dedup"] == "domain:lab"
    assert daemon.status()["arena"]["duplicate_pages"] == 1
    assert [write(client, 2) for client in "bca"] == [1, 1, 2]
    for client in "abc":
        with nbd.Client(device_of(client)) as device:
            for seed in (1, 2):
                assert device.read(seed * PAGE, PAGE) == random.Random(seed).randbytes(PAGE)
            device.trim(0, 8 * PAGE)
    arena = daemon.status()["arena"]
    assert (arena["duplicate_pages"], arena["deduplicated_bytes"], arena["data_bytes"]) == (0, 0, 0)


def test_a_client_of_another_size_is_bad_input(daemon: Daemon) -> None:
    _write(daemon.start())
    daemon.kill()
    refused = try_run(*daemon.options, "--client", "a:2MiB")
    assert refused.returncode == 2
    refused = try_run("--state", str(daemon.state), "--client", "a:2MiB")
    assert refused.returncode == 2
    assert "client 'a' exists with a swap of 1MiB, not 2MiB" in refused.stderr
    assert _is_there(daemon.start())


def test_bad_input_starts_and_makes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "s"
    deep = tmp_path / ("d" * 100)
    for options, says in (
        ([], "--memory: the first start needs a limit (for example --memory 512MiB)"),
        (["--memory", "64MB"], "did you mean MiB?"),
        (["--memory", "1MiB", "--sockets", str(deep)], "107 are possible"),
        (["--memory", "1MiB", "--user", "no-such-user"], "there is no user 'no-such-user'"),
    ):
        for mode in ([], ["--detach"]):
            refused = try_run("--state", str(state), *options, *mode)
            assert refused.returncode == 2
            assert says in refused.stderr
            assert refused.stderr.startswith("kztmemd: error: ")
            assert refused.stdout == ""
    assert not deep.exists()
    assert not (state / "clients.json").exists()
    remove(state)


def test_more_memory_than_the_host_has_is_refused_with_numbers(state: Path) -> None:
    for mode in ([], ["--detach"]):
        refused = try_run("--state", str(state), "--memory", "900GiB", *CLIENT, *mode)
        assert refused.returncode == 4
        assert "/dev/shm has " in refused.stderr
        assert "the arena may need 900GiB" in refused.stderr
        assert "mount -o remount,size=" in refused.stderr
    assert not (state / "clients.json").exists()
    remove(state)


def test_a_shared_memory_that_fills_up_later_does_not_lock_pages_out(state: Path) -> None:
    """In a mount namespace with a /dev/shm of its own, 16 MiB small."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to make mount namespaces")
    script = """set -e
        mount -t tmpfs -o size=16m none /dev/shm
        serve="$PYTHON -m kztmem.daemon --state $STATE --client a:1MiB"
        if $serve --memory 64MiB 2>$STATE.small; then exit 1; fi
        ready=$($serve --memory 8MiB --detach)
        cp /dev/zero /dev/shm/full 2>/dev/null || echo "$ready"
    """
    environment = os.environ | {"STATE": str(state), "PYTHON": sys.executable}
    done = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    with Daemon(state) as daemon:
        daemon.adopt(done.stdout)
        kill(daemon.status()["pid"])
        with nbd.Client(daemon.nbd("a")) as device:
            assert device.read(0, PAGE) == bytes(PAGE)
        assert any("has 0 of 16777216 bytes free" in text for text in daemon.status()["warnings"])
    refusal = Path(f"{state}.small").read_text()
    assert "/dev/shm has 16MiB free of 16MiB, the arena may need 64MiB" in refusal


def test_a_full_disk_is_an_error_and_loses_nothing(daemon: Daemon) -> None:
    _write(daemon.start())
    with daemon.http() as api:
        before = api.get("/v1/clients").json()
        # No file may grow: the kernel refuses what the daemon writes, as on a full disk.
        limit = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
        made = api.post("/v1/clients", json={"name": "b", "swap": "1MiB"})
        removed = api.delete("/v1/clients/a")
        for answer in (made, removed):
            assert answer.status_code == 507
            assert "nothing was changed" in answer.json()["hint"]
        assert api.get("/v1/clients").json()["clients"][0]["name"] == "a"
        assert [client["name"] for client in api.get("/v1/clients").json()["clients"]] == [
            client["name"] for client in before["clients"]
        ]
        assert not (daemon.state / "clients" / "b").exists()
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, limit)
        assert api.post("/v1/clients", json={"name": "b", "swap": "1MiB"}).status_code == 201
    daemon.kill()
    assert _is_there(daemon.start())
    assert set(daemon.ready["clients"]) == {"a", "b"}


@pytest.mark.parametrize("damage", [None, "", "{", '{"a": 5000}'])
def test_clients_that_cannot_be_known_are_not_guessed(
    daemon: Daemon, state: Path, damage: str | None
) -> None:
    _write(daemon.start())
    daemon.kill()
    file = state / "clients.json"
    good = file.read_text()
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    refused = try_run(*daemon.options)
    assert refused.returncode == 4
    assert "clients.json" in refused.stderr
    file.write_text(good)
    assert _is_there(daemon.start())


def test_a_list_of_clients_deleted_under_the_daemon_costs_no_page(
    daemon: Daemon, state: Path
) -> None:
    _write(daemon.detach())
    pids = daemon.status()
    file = state / "clients.json"
    good = file.read_text()
    file.unlink()
    kill(pids["pid"])
    wait_for_end(pids["supervisor_pid"])
    assert "clients.json is missing" in daemon.log()
    assert "giving up" in daemon.log()
    file.write_text(good)
    assert _is_there(daemon.detach())


def test_a_pool_whose_removal_was_cut_short_goes(daemon: Daemon, state: Path) -> None:
    daemon.options += ["--client", "b:1MiB"]
    _write(daemon.start())
    daemon.kill()
    clients = json.loads((state / "clients.json").read_text())
    (state / "clients.json").write_text(json.dumps({"b": clients["b"]}))
    daemon.options = ["--state", str(state)]
    status = daemon.start().status()
    assert status["arena"]["pages"] == 0
    assert [client["name"] for client in status["clients"]] == ["b"]


def test_sockets_may_be_elsewhere(daemon: Daemon, tmp_path: Path) -> None:
    sockets = tmp_path / "run"
    daemon.options += ["--sockets", str(sockets)]
    _write(daemon.detach())
    assert daemon.ready["api"] == str(sockets / "api.sock")
    assert daemon.nbd("a") == sockets / "clients" / "a" / "nbd.sock"
    daemon.kill()
    remove(daemon.state)
    assert list(sockets.iterdir()) == []


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    refused = try_run("--state", str(tmp_path), "--memory", "1MiB")
    assert refused.returncode == 2
    assert f"chmod 700 {tmp_path}" in refused.stderr


# --- as root


@pytest.fixture
def service_user() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        return pwd.getpwnam("kztlab")
    except KeyError:
        pytest.skip("needs the user kztlab")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can walk through, unlike pytest's."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_root_serves_as_the_service_user(public: Path, service_user: pwd.struct_passwd) -> None:
    with Daemon(public / "s", *CLIENT) as daemon:
        daemon.detach()
        _write(daemon)
        status = daemon.status()
        assert status["user"] == "kztlab"
        for process in ("supervisor_pid", "pid"):
            facts = Path(f"/proc/{status[process]}/status").read_text()
            ids = "\t".join([str(service_user.pw_uid)] * 4)
            assert f"Uid:\t{ids}\n" in facts
            assert "Groups:\t \n" in facts
        assert {path.stat().st_uid for path in public.rglob("*")} == {service_user.pw_uid}
        assert _arena(daemon).stat().st_uid == service_user.pw_uid
        kill(status["pid"])
        assert _is_there(daemon)
        daemon.kill()
        assert _is_there(daemon.start())
        assert daemon.status()["user"] == "kztlab"


@pytest.mark.usefixtures("service_user")
def test_the_service_user_need_not_be_able_to_read_the_program(public: Path) -> None:
    import kztmem  # noqa: PLC0415 -- only its place is wanted

    private = public / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(Path(kztmem.__path__[0]), private / "kztmem")
    program = f"import sys; sys.path.insert(0, {str(private)!r}); import runpy; "
    program += "runpy.run_module('kztmem.daemon', run_name='__main__')"
    with Daemon(public / "s", *CLIENT) as daemon:
        done = subprocess.run(
            [sys.executable, "-c", program, *daemon.options, "--detach"],
            capture_output=True,
            text=True,
            check=True,
        )
        daemon.adopt(done.stdout)
        assert daemon.status()["user"] == "kztlab"
        _write(daemon)
        for _ in range(3):
            kill(daemon.status()["pid"])
            assert _is_there(daemon)
        with daemon.http() as api:
            assert api.get("/metrics").status_code == 200
            assert api.get("/openapi.json").status_code == 200
            assert api.post("/v1/clients", content=b"{").status_code == 400
            made = api.post("/v1/clients", json={"name": "b", "swap": "1MiB"})
            assert made.status_code == 201
        assert "Traceback" not in daemon.log()


@pytest.mark.usefixtures("service_user")
def test_root_does_not_take_a_full_directory_over(public: Path) -> None:
    (public / "precious").write_text("mine")
    refused = try_run("--state", str(public), "--memory", "1MiB")
    assert refused.returncode == 2
    assert "belongs to root and is not empty" in refused.stderr
    assert public.stat().st_uid == 0


@pytest.mark.usefixtures("service_user")
def test_root_serves_as_root_where_the_service_user_cannot_go(public: Path) -> None:
    public.chmod(0o700)
    with Daemon(public / "s", *CLIENT) as daemon:
        status = daemon.detach().status()
        assert status["user"] == "root"
        assert f"serving as root: user kztlab cannot reach {public}/s" in status["warnings"]


@pytest.mark.usefixtures("service_user")
def test_pages_of_another_user_are_not_left_behind(public: Path) -> None:
    with Daemon(public / "s", *CLIENT) as daemon:
        _write(daemon.start())
        daemon.kill()
        stranger = public / "s"
        os.chown(stranger, 0, 0)
        refused = try_run(*daemon.options, "--user", "root")
        assert refused.returncode == 4
        assert "serve as kztlab" in refused.stderr
        os.chown(stranger, pwd.getpwnam("kztlab").pw_uid, -1)
        assert _is_there(daemon.start())
