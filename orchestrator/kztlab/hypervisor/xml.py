# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest as libvirt's domain XML, and what kztlab wrote there read back.

Everything kztlab must know about a running guest travels in a metadata element of the domain, so
any later process finds the guest again by asking libvirt alone.

Two devices are beyond libvirt 9's XML and go to QEMU as arguments: a swap disk that QEMU serves
(libvirt drops an NBD source's reconnect delay without a word, and without it a restart of the store
is an I/O error on the guest's swap) and the network card with its SSH forward. libvirt hands out
PCI slots from the low end, so theirs are fixed at the high end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from kztlab.hypervisor.model import (
    SWAP_SERIAL,
    DiskSwap,
    Domain,
    GuestState,
    NbdSwap,
    RelayPorts,
    TmemSwap,
    VhostSwap,
)

NAMESPACE = "urn:kztlab:guest:1"
PREFIX = "kztlab"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

RECONNECT_SECONDS = 3600
"""How long QEMU holds swap requests for a store that is away before they fail with EIO."""

OPEN_SECONDS = 10
"""How long a starting QEMU waits for the store: one that is being restarted is soon back."""

CMDLINE = "console=ttyS0,115200 no_timer_check panic=-1"
"""A panicking guest resets at once, and a reset ends the domain: so a panic is an event. The kernel
would panic if the timer stood still while it looks, as an emulated one does on a busy host; under
KVM it does not look."""

TRANSLATION_CACHE_MIB = 128
"""What TCG may keep of translated code. QEMU's default is a gigabyte, which a guest that starts
many programs fills: several times the memory of a small guest, on a host that is to be packed."""

RELAY_PORT, TMEM_PORT, CTL_PORT = "org.kztlab.relay.0", "org.kztlab.tmem.0", "org.kztlab.ctl.0"
"""The names by which kzt-agent finds its ports."""

CHARDEV_RECONNECT_SECONDS = 1
"""How soon QEMU tries to reach a store that has gone; the guest waits meanwhile."""

MAX_QUEUES = 16
"""What the store serves of a disk's queues. One for each virtual CPU is best."""

_SWAP_SLOT, _NET_SLOT = "0x1d", "0x1e"
_PCI_BUS = "pci.0"

ET.register_namespace(PREFIX, NAMESPACE)
ET.register_namespace("qemu", _QEMU)


def domain_xml(domain: Domain, *, name: str, state: Path, ssh_port: int) -> str:
    """The transient domain `name` for `domain`; `state` is the kztlab it belongs to."""
    root = ET.Element("domain", type="kvm" if domain.accelerator == "kvm" else "qemu")
    _text(root, "name", name)
    _text(root, "title", f"{domain.lab}/{domain.guest}")
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(
        metadata,
        f"{{{NAMESPACE}}}guest",
        state=str(state),
        lab=domain.lab,
        guest=domain.guest,
        accelerator=domain.accelerator,
        frontend=domain.frontend,
        ssh_port=str(ssh_port),
        console_log=str(domain.console_log),
    )
    _text(root, "memory", str(domain.memory), unit="b")
    if isinstance(domain.swap, VhostSwap):
        backing = ET.SubElement(root, "memoryBacking")
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    _vcpus(root, domain)
    _boot(root, domain)
    _cpu(root, domain)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(root, domain)
    commandline = ET.SubElement(root, f"{{{_QEMU}}}commandline")
    for argument in qemu_arguments(domain, ssh_port):
        ET.SubElement(commandline, f"{{{_QEMU}}}arg", value=argument)
    return ET.tostring(root, encoding="unicode")


def qemu_arguments(domain: Domain, ssh_port: int) -> list[str]:
    """The QEMU arguments for what libvirt's XML cannot say."""
    # restrict=on: a guest reaches neither the network nor, through the gateway address, services
    # that listen on the host's loopback. No option ROM: nothing boots from the network.
    netdev = f"user,id=kztnet0,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"
    card = {
        "driver": "virtio-net-pci",
        "netdev": "kztnet0",
        "id": "kztnet0",
        "romfile": "",
        "bus": _PCI_BUS,
        "addr": _NET_SLOT,
    }
    arguments = ["-netdev", netdev, "-device", json.dumps(card)]
    swap = domain.swap.disk if isinstance(domain.swap, TmemSwap) else domain.swap
    if isinstance(swap, NbdSwap | DiskSwap):
        # A refused write (the store is full) is an I/O error that the guest's kernel deals with;
        # QEMU's default would stop the whole guest instead.
        disk = {
            "driver": "virtio-blk-pci",
            "drive": SWAP_SERIAL,
            "id": SWAP_SERIAL,
            "serial": SWAP_SERIAL,
            "werror": "report",
            "rerror": "report",
            "physical_block_size": 4096,
            "discard_granularity": 4096,
            "bus": _PCI_BUS,
            "addr": _SWAP_SLOT,
        }
        arguments += ["-blockdev", json.dumps(_swap_node(swap)), "-device", json.dumps(disk)]
    return arguments


def _swap_node(swap: NbdSwap | DiskSwap) -> dict[str, Any]:
    # detect-zeroes stays off: it would turn a page of zeros into a hole, so that the store's count
    # of pages would fall behind the guest's swap-outs, and save nothing: the store keeps a
    # same-filled page in its index entry, and kernels from 6.12 on don't send zero pages at all.
    node: dict[str, Any] = {"node-name": SWAP_SERIAL, "discard": "unmap"}
    if isinstance(swap, NbdSwap):
        return node | {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(swap.socket)},
            "export": swap.export,
            "reconnect-delay": RECONNECT_SECONDS,
            "open-timeout": OPEN_SECONDS,
        }
    file = {"driver": "file", "filename": str(swap.path), "discard": "unmap"}
    return node | {"driver": "raw", "file": file}


def _vcpus(root: ET.Element, domain: Domain) -> None:
    attributes = {}
    vcpus = domain.vcpus
    if vcpus == 1 and domain.accelerator == "tcg":
        # For a guest that can have no second processor QEMU before 8.1 leaves out memory barriers,
        # although its devices are threads and processes of their own: the guest misses an interrupt
        # of a virtqueue in a million requests or fewer, and waits for ever. One that is not plugged
        # in is enough. (QEMU c914d46d0a64, "tcg: Do not elide memory barriers".)
        attributes["current"] = "1"
        vcpus = 2
    _text(root, "vcpu", str(vcpus), **attributes)


def _boot(root: ET.Element, domain: Domain) -> None:
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="pc")
    _text(boot, "kernel", str(domain.kernel))
    _text(boot, "initrd", str(domain.initrd))
    _text(boot, "cmdline", f"{domain.cmdline} {CMDLINE}".strip())
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if domain.accelerator == "tcg":
        tcg = ET.SubElement(features, "tcg")
        _text(tcg, "tb-cache", str(TRANSLATION_CACHE_MIB), unit="MiB")


def _cpu(root: ET.Element, domain: Domain) -> None:
    if domain.accelerator == "kvm":
        ET.SubElement(root, "cpu", mode="host-passthrough")
        return
    # With the first two the kernel copies pages by `rep movsb`, which TCG runs byte by byte. The
    # third has an instruction for CRC-32C, which TCG runs bit by bit.
    cpu = ET.SubElement(root, "cpu", mode="maximum")
    for feature in ("erms", "fsrm", "sse4.2"):
        ET.SubElement(cpu, "feature", policy="disable", name=feature)


def _devices(root: ET.Element, domain: Domain) -> None:
    devices = ET.SubElement(root, "devices")
    if domain.disk is not None:
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        # A lab's overlay need not outlive a crash of the host: flushes are not worth waiting for.
        ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap")
        ET.SubElement(disk, "source", file=str(domain.disk))
        ET.SubElement(disk, "target", dev="vda", bus="virtio")
        _text(disk, "serial", "kztroot0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(domain.console_log), append="off")
    ET.SubElement(serial, "target", port="0")
    if isinstance(domain.swap, RelayPorts):
        _port(devices, RELAY_PORT, domain.swap.relay)
        _port(devices, CTL_PORT, domain.swap.ctl)
    elif isinstance(domain.swap, TmemSwap):
        _port(devices, TMEM_PORT, domain.swap.tmem)
        _port(devices, CTL_PORT, domain.swap.ctl)
    elif isinstance(domain.swap, VhostSwap):
        _vhost_disk(devices, domain.swap.socket, queues=min(domain.vcpus, MAX_QUEUES))
    balloon = ET.SubElement(devices, "memballoon", model="virtio")
    ET.SubElement(balloon, "stats", period="1")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def _port(devices: ET.Element, name: str, socket: Path) -> None:
    """A virtio-serial port that leads to a socket; libvirt adds the controller."""
    channel = ET.SubElement(devices, "channel", type="unix")
    source = ET.SubElement(channel, "source", mode="connect", path=str(socket))
    ET.SubElement(source, "reconnect", enabled="yes", timeout=str(CHARDEV_RECONNECT_SECONDS))
    ET.SubElement(channel, "target", type="virtio", name=name)


def _vhost_disk(devices: ET.Element, socket: Path, *, queues: int) -> None:
    """A virtio disk that the store serves; its serial number is the store's answer."""
    disk = ET.SubElement(devices, "disk", type="vhostuser", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="raw", queues=str(queues))
    source = ET.SubElement(disk, "source", type="unix", path=str(socket))
    ET.SubElement(source, "reconnect", enabled="yes", timeout=str(CHARDEV_RECONNECT_SECONDS))
    ET.SubElement(disk, "target", dev="vdb", bus="virtio")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def read_metadata(xml: str, *, uuid: str, state: str) -> tuple[Path, GuestState]:
    """The kztlab a domain belongs to (its state folder) and the guest, from the metadata `xml`.

    Raises `ValueError` if this is not what `domain_xml` wrote.
    """
    try:
        element = ET.fromstring(xml)  # noqa: S314  -- from libvirt, with entities resolved
        return Path(element.attrib["state"]), GuestState(
            lab=element.attrib["lab"],
            guest=element.attrib["guest"],
            uuid=uuid,
            state=state,
            accelerator=element.attrib["accelerator"],
            frontend=element.attrib["frontend"],
            ssh_port=int(element.attrib["ssh_port"]),
            console_log=Path(element.attrib["console_log"]),
        )
    except (ET.ParseError, KeyError) as error:
        raise ValueError(f"not a guest's metadata: {error}") from error
