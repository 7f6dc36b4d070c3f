# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest, from nothing to ready: disks, domain, SSH, swap and control groups."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable, Interrupted
from kztlab.guest import prepare, wait_ready
from kztlab.hypervisor import (
    DiskSwap,
    Domain,
    NbdSwap,
    RelayPorts,
    Swap,
    TmemSwap,
    VhostSwap,
)
from kztlab.image import lab_initrd
from kztlab.lab.doctor import program
from kztlab.lab.session import Member
from kztlab.spec import TmemSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kztlab.hypervisor import GuestState
    from kztlab.image import Image
    from kztlab.lab.record import GuestRecord
    from kztlab.lab.session import Session
    from kztlab.spec import GuestSpec
    from kztlab.store import Client


def initrds(session: Session, images: Mapping[str, Image]) -> dict[str, Path]:
    """For each image by name, its initrd with the lab's keys in it."""
    written = {}
    for name, image in images.items():
        folder = session.places.folder(session.places.lab(session.record.lab) / "boot" / name)
        written[name] = lab_initrd(
            image,
            folder,
            authorized_key=session.keys.authorized_key,
            host_key=session.keys.host.read_text("ascii"),
        )
        session.places.own(written[name])
    return written


def bring_up(
    session: Session,
    record: GuestRecord,
    *,
    running: GuestState | None,
    image: Image,
    initrd: Path,
    client: Client | None,
) -> Member:
    """Boot the guest unless it runs, wait until it is ready, and prepare it unless it was.

    `client` is what the guest is to the store, if it swaps there. Raises `GuestLost` if the guest
    does not get there.
    """
    if session.stop.is_set():
        raise Interrupted("interrupted")
    if running is None:
        record.phase = "booting"
        session.save()
        session.progress.step(record.name, "starting")
        domain = _domain(session, record, image=image, initrd=initrd, client=client)
        running = session.hypervisor.start(domain)
    step = partial(_step, session, record.name)
    limit = record.spec.boot_timeout
    shell = wait_ready(session.hypervisor, running, session.keys, limit=limit, progress=step)
    if record.phase != "ready":
        prepare(shell, record.spec, progress=step)
        record.phase = "ready"
        session.save()
    session.progress.done(record.name, "ready")
    return Member(record, running, shell)


def _step(session: Session, guest: str, step: str, elapsed: float, limit: float) -> None:
    if session.stop.is_set():
        raise Interrupted("interrupted")
    session.progress.step(guest, step, elapsed, limit)


def _domain(
    session: Session,
    record: GuestRecord,
    *,
    image: Image,
    initrd: Path,
    client: Client | None,
) -> Domain:
    session.places.folder(record.folder)
    _overlay(session, record.overlay, image.disk)
    swap = _swap(session, record, client)
    cmdline = f"{image.cmdline} kztlab.hostname={record.name}"
    if record.spec.frontend == "tmem":
        # The module reads them when it is loaded, before its first session.
        for name, value in module_parameters(record.spec).items():
            cmdline += f" kztmem.{name}={value}"
    return Domain(
        lab=session.record.lab,
        guest=record.name,
        memory=record.spec.memory,
        vcpus=record.spec.vcpus,
        accelerator=session.record.accel or "tcg",
        kernel=image.kernel,
        initrd=initrd,
        cmdline=cmdline,
        console_log=record.console,
        frontend=record.spec.frontend,
        disk=record.overlay,
        swap=swap,
    )


def module_parameters(spec: GuestSpec) -> dict[str, int]:
    """The parameters of the guest's kztmem."""
    tmem = spec.tmem or TmemSpec()
    return {
        "cleancache": int(spec.cleancache is not False),
        "put_wait": int(tmem.put_wait),
        "admit": tmem.admit,
        "writeback": int(tmem.writeback),
        "timeout": round(tmem.timeout * 1000),
        "slots": tmem.slots,
    }


def _swap(session: Session, record: GuestRecord, client: Client | None) -> Swap | None:
    """What the guest swaps to, as far as the hypervisor has a part in it."""
    match record.spec.frontend:
        case "disk" | "zswap":
            return DiskSwap(_raw(session, record.swap, record.spec.swap))
        case "nbd" if client is not None:
            return NbdSwap(client.nbd)
        case "relay" if client is not None:
            return RelayPorts(client.relay, client.ctl)
        case "vhost-user-blk" if client is not None:
            return VhostSwap(client.vhost)
        case "tmem" if client is not None:
            disk = DiskSwap(_raw(session, record.swap, record.spec.swap))
            return TmemSwap(disk, client.tmem, client.ctl)
        case _:
            return None


def _overlay(session: Session, path: Path, base: Path) -> None:
    """A fresh overlay: a guest that died begins again with a clean disk."""
    path.unlink(missing_ok=True)
    command = [str(program("qemu-img") or "qemu-img"), "create", "-q", "-f", "qcow2"]
    command += ["-F", "qcow2", "-b", str(base), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostUnable(f"cannot create {path}: {done.stderr.strip()}")
    session.places.own(path)


def _raw(session: Session, path: Path, size: int) -> Path:
    """A fresh raw file: sparse, so a full disk shows as I/O errors later unless it is seen now."""
    path.unlink(missing_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise HostUnable(
            f"{path} is to hold {size >> 20} MiB of swap, {free >> 20} MiB are free",
            hint="make room, or give the guest less swap",
        )
    with path.open("xb") as file:
        file.truncate(size)
    session.places.own(path)
    return path
