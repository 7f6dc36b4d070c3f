# SPDX-License-Identifier: GPL-2.0-or-later
"""Initrds, unpacked by GNU cpio as Linux would."""

from __future__ import annotations

import lzma
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import HostUnable
from kztlab.image import Image, lab_initrd
from kztlab.image.cpio import Archive
from kztlab.image.initrd import build, load_order

if TYPE_CHECKING:
    from pathlib import Path

DEPENDENCIES = """\
kernel/net/core/failover.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
"""  # noqa: E501  -- modules.dep has one line a module


def unpack(archive: bytes, into: Path) -> None:
    into.mkdir(exist_ok=True)
    command = ["cpio", "--extract", "--quiet", "--make-directories", "--no-preserve-owner"]
    subprocess.run(command, input=archive, cwd=into, check=True)


def test_an_archive_unpacks_to_what_was_put_in(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("etc", 0o750)
    archive.file("etc/odd", b"12345", 0o640)
    archive.file("etc/empty", b"")
    archive.symlink("etc/link", "odd")
    unpack(archive.finish(), tmp_path / "out")
    etc = tmp_path / "out/etc"
    assert stat.S_IMODE(etc.stat().st_mode) == 0o750
    assert (etc / "odd").read_bytes() == b"12345"
    assert stat.S_IMODE((etc / "odd").stat().st_mode) == 0o640
    assert (etc / "empty").read_bytes() == b""
    assert (etc / "link").readlink().name == "odd"


def test_modules_are_loaded_after_what_they_need() -> None:
    order = load_order(DEPENDENCIES, ["virtio_net", "virtio_rng", "failover"])
    assert [path.rpartition("/")[2] for path in order] == [
        "failover.ko.xz",
        "net_failover.ko.xz",
        "virtio_net.ko.xz",
        "virtio-rng.ko.xz",
    ]


def test_a_missing_module_is_told() -> None:
    with pytest.raises(HostUnable, match="no module virtio_blk"):
        load_order(DEPENDENCIES, ["virtio_blk"])


def test_the_initrd_has_its_modules_unpacked_and_in_order(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    for line in DEPENDENCIES.splitlines():
        path = modules / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(path.name.encode()))
    (modules / "modules.dep").write_text(DEPENDENCIES)
    archive = build(init=b"#!", busybox=b"ELF", modules=modules, wanted=["virtio_net"])
    unpack(archive, tmp_path / "out")
    packed = sorted((tmp_path / "out/modules").iterdir())
    assert {path.name: path.read_text() for path in packed} == {
        "00-failover.ko": "failover.ko.xz",
        "01-net_failover.ko": "net_failover.ko.xz",
        "02-virtio_net.ko": "virtio_net.ko.xz",
    }
    assert (tmp_path / "out/init").stat().st_mode & stat.S_IXUSR
    assert (tmp_path / "out/bin/sh").resolve().read_bytes() == b"ELF"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    folder = tmp_path / "image"
    folder.mkdir()
    archive = Archive()
    archive.file("init", b"#!/bin/sh\n", 0o755)
    (folder / "initrd.img").write_bytes(archive.finish())
    return Image(
        name="some",
        hash="0123456789abcdef",
        kernel=folder / "vmlinux",
        initrd=folder / "initrd.img",
        disk=folder / "disk.qcow2",
        cmdline="quiet",
    )


def test_a_labs_keys_follow_the_images_archive(image: Image, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    lab.mkdir()
    path = lab_initrd(image, lab, authorized_key="ssh-ed25519 AAAA me", host_key="-----KEY\n\n")
    assert path.parent == lab
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(lab.iterdir()) == [path]

    whole, own = path.read_bytes(), image.initrd.read_bytes()
    assert whole.startswith(own)
    assert len(own) % 4 == 0  # Linux looks for the next archive at such an offset
    unpack(whole[len(own) :], tmp_path / "out")
    keys = tmp_path / "out/kztlab"
    assert (keys / "ssh_host_ed25519_key").read_text() == "-----KEY\n"
    assert (keys / "authorized_keys").read_text() == "ssh-ed25519 AAAA me\n"
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys.iterdir()} == {0o600}


def test_a_labs_initrd_replaces_the_one_before(image: Image, tmp_path: Path) -> None:
    first = lab_initrd(image, tmp_path, authorized_key="one", host_key="one").read_bytes()
    second = lab_initrd(image, tmp_path, authorized_key="two", host_key="two").read_bytes()
    assert first != second
