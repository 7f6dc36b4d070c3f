# SPDX-License-Identifier: GPL-2.0-or-later
"""Which libvirt to talk to, and root's own one.

An ordinary user has `qemu:///session`, whose libvirtd comes up by itself. Root has no session, and
a system libvirtd may not be set up. So root runs a libvirtd in session mode as the service user:
no guest ever runs as root. It ends by itself after a while with neither guests nor clients.

The daemon is started under a lock, so that of several commands at once one starts it. Its run-time
files outlive it: if it is killed, the next one finds the running guests there.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.locks import lock_file
from kztlab.programs import SYSTEM_PATH, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kztlab.places import Places

_FOLDER = "libvirt"
_IDLE_SECONDS = 120
_START_LIMIT_SECONDS = 60
_STOP_LIMIT_SECONDS = 15

_QEMU_CONF = """\
# Written by kztlab at each start of this libvirtd.
security_driver = "none"
stdio_handler = "file"
seccomp_sandbox = 1
"""


def uri(places: Places) -> str:
    """The connection URI of this user's libvirt; for root its own libvirtd is running then.

    Raises `HostUnable` if there is no libvirtd or it does not start.
    """
    binary = find("libvirtd")
    if binary is None:
        raise HostUnable(
            "libvirtd is not installed",
            hint="apt install libvirt-daemon qemu-system-x86",
        )
    if places.user is None:
        return "qemu:///session"
    with _locked(places) as folder:
        address = places.check_socket(_address(folder))
        if _listener(address) is None:
            _start(binary, places, folder)
    return f"qemu+unix:///session?socket={address}"


def started(places: Places) -> bool:
    """Whether guests can be there at all: false once root's own libvirtd has been stopped, or was
    never started."""
    return places.user is None or (places.runtime / _FOLDER).exists()


def stop(places: Places, *, needed: Callable[[], bool]) -> None:
    """End root's own libvirtd, if it runs, and remove its run-time files. No guest may be left.

    `needed` is asked when nobody else can start or use it any more: a lab that has come meanwhile
    keeps it. An ordinary user's libvirtd is not ours, and ends by itself.
    """
    if places.user is None or not started(places):
        return
    with _locked(places) as folder:
        if needed():
            return
        pid = _listener(_address(folder))
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                signal.pidfd_send_signal(process, signal.SIGTERM)
                select.select([process], [], [], _STOP_LIMIT_SECONDS)
                os.close(process)
        shutil.rmtree(folder)


def _address(folder: Path) -> Path:
    return folder / "libvirt" / "libvirt-sock"


def _listener(address: Path) -> int | None:
    """The process that listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(bytes(address))
        except OSError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


@contextlib.contextmanager
def _locked(places: Places) -> Iterator[Path]:
    """Alone in the folder with all of our libvirtd's run-time files."""
    while True:
        folder = places.service_folder(places.runtime / _FOLDER)
        lock = lock_file(folder / "start.lock")
        if lock is not None:
            break
    try:
        yield folder
    finally:
        os.close(lock)


def _start(binary: str, places: Places, folder: Path) -> None:
    account = places.account()
    config = places.service_folder(folder / "config")
    qemu_conf = places.service_folder(config / "libvirt") / "qemu.conf"
    qemu_conf.unlink(missing_ok=True)  # root follows no link that the service user laid
    with qemu_conf.open("x") as file:
        file.write(_QEMU_CONF)
    places.own(qemu_conf)
    cache = places.service_folder(places.cache / "libvirt")
    environment = {
        "PATH": SYSTEM_PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": account.pw_dir,
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_CONFIG_HOME": str(config),
        "XDG_CACHE_HOME": str(cache),
        "XDG_DATA_HOME": str(places.service_folder(folder / "data")),
    }
    for path in (folder, cache):
        places.check_reach(path)
    try:
        # The parent exits once the daemon accepts clients, with an error if it does not get so far.
        done = subprocess.run(
            [binary, "--daemon", "--timeout", str(_IDLE_SECONDS)],
            env=environment,
            cwd="/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_START_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostUnable(f"libvirtd was not up after {_START_LIMIT_SECONDS} s") from error
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise HostUnable(
            f"libvirtd does not start: {said[-1] if said else f'exit code {done.returncode}'}",
            hint=f"its log: {cache / 'libvirt' / 'libvirtd.log'}",
        )
