# SPDX-License-Identifier: GPL-2.0-or-later
"""The image as a guest: booted by plain QEMU, used over SSH, switched off by its power button."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kztlab.image import Image, ensure, lab_initrd
from kztlab.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.guest


@dataclass
class Machine:
    """A QEMU with its files in `folder`."""

    process: subprocess.Popen[bytes]
    folder: Path
    ssh_port: int

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")

    def wait_banner(self) -> str:
        """The greeting of its SSH server; QEMU accepts connections long before there is one."""
        while self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.ssh_port), timeout=1) as peer:
                    banner = peer.recv(256)
            except OSError:
                continue
            if banner:
                return banner.decode()
            time.sleep(0.05)
        raise AssertionError(f"the guest has gone: {self.console}")

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(self.folder / "qmp"))
            commands = [{"execute": "qmp_capabilities"}, {"execute": "system_powerdown"}]
            peer.sendall("".join(map(json.dumps, commands)).encode())
            while peer.recv(4096):  # until it is off
                pass


@pytest.fixture(
    scope="session",
    params=[
        "debian-trixie",
        pytest.param("debian-trixie-tmem", marks=pytest.mark.timeout(2400)),  # builds its kernel
    ],
)
def image(request: pytest.FixtureRequest) -> Image:
    return ensure(request.param, Places.default(), lambda _step, _seconds: None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of whoever QEMU runs as, short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="kzt-"))
    Places.default().own(folder)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def machine(image: Image, folder: Path, initrd: Path) -> Iterator[Machine]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    overlay, swap = folder / "disk", folder / "swap"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2"]
    subprocess.run([*create, "-b", image.disk, overlay], check=True)
    with swap.open("wb") as file:
        file.truncate(512 << 20)
    for path in (overlay, swap, initrd):
        Places.default().own(path)
    account = Places.default().account()
    command: list[str | Path] = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg"]
    command += ["-cpu", "max,-erms,-fsrm", "-m", "160", "-nodefaults", "-display", "none"]
    command += ["-no-reboot", "-kernel", image.kernel, "-initrd", initrd]
    command += ["-append", f"{image.cmdline} kztlab.hostname=web-1"]
    command += ["-serial", f"file:{folder}/console", "-qmp", f"unix:{folder}/qmp,server,nowait"]
    for name, drive in (("disk", f"file={overlay}"), ("swap", f"file={swap},format=raw")):
        command += ["-drive", f"{drive},if=none,id={name}"]
        command += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"]
    command += ["-device", "virtio-net-pci,netdev=net,romfile="]
    same = account.pw_uid == os.getuid()
    process = subprocess.Popen(
        command,
        user=None if same else account.pw_uid,
        group=None if same else account.pw_gid,
        extra_groups=None if same else os.getgrouplist(account.pw_name, account.pw_gid),
    )
    try:
        yield Machine(process, folder, port)
    finally:
        process.kill()
        process.wait()


def key_pair() -> tuple[str, str]:
    """An OpenSSH private key and its public one."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode()


def run(client: paramiko.SSHClient, command: str) -> str:
    _, output, errors = client.exec_command(command)
    text = output.read().decode()
    assert output.channel.recv_exit_status() == 0, errors.read().decode()
    return text.strip()


def test_boots_takes_the_labs_keys_swaps_and_switches_off(image: Image, folder: Path) -> None:
    host_key, host_public = key_pair()
    own_key, own_public = key_pair()
    initrd = lab_initrd(image, folder, authorized_key=own_public, host_key=host_key)
    with machine(image, folder, initrd) as guest:
        assert guest.wait_banner().startswith("SSH-2.0-OpenSSH")
        (folder / "own_key").write_text(own_key)
        with paramiko.SSHClient() as client:
            client.get_host_keys().add(
                f"[127.0.0.1]:{guest.ssh_port}",
                "ssh-ed25519",
                paramiko.Ed25519Key(data=base64.b64decode(host_public.split()[1])),
            )
            client.connect(
                "127.0.0.1",
                guest.ssh_port,
                "root",
                key_filename=str(folder / "own_key"),
                look_for_keys=False,
                allow_agent=False,
                banner_timeout=60,
                auth_timeout=60,
            )
            assert run(client, "hostname") == "web-1"
            assert run(client, "cat /sys/block/vdb/serial") == "swap"
            run(client, "mkswap /dev/vdb && swapon --discard=pages /dev/vdb")
            result = json.loads(run(client, "kzt-load anon --size 200MiB --passes 2 --json"))
            assert result["ok"]
            assert (result["pages"], result["passes"], result["bad_pages"]) == (51200, 2, 0)
            # Of 200 MiB in a guest of 160, a good part has to go out, and come back.
            assert min(result["pswpout"], result["pswpin"]) > 51200 * 0.3
            # Modules of the frontends that a guest has itself.
            run(client, "modprobe nbd && modprobe zram && test -b /dev/nbd0 -a -b /dev/zram0")
            run(client, "echo +memory >/sys/fs/cgroup/cgroup.subtree_control")
            # What identifies the lab is nowhere on the disk, and no other host key either.
            assert run(client, "find / -xdev -name 'ssh_host_*_key'") == ""
        guest.press_power_button()
        assert guest.process.wait() == 0
        assert "kztlab: going down" in guest.console


def test_without_a_labs_keys_it_says_so_and_gives_up(image: Image, folder: Path) -> None:
    initrd = folder / "plain.img"
    shutil.copyfile(image.initrd, initrd)
    with machine(image, folder, initrd) as guest:
        assert guest.process.wait() == 0  # panic=-1 and -no-reboot
        assert "FAILED: the lab brought no SSH keys" in guest.console
