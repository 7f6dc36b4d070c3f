# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kztlab.hypervisor import (
    AcceleratorKind,
    DiskSwap,
    Domain,
    GuestState,
    NbdSwap,
    RelayPorts,
    TmemSwap,
    VhostSwap,
)
from kztlab.hypervisor.xml import NAMESPACE, domain_xml, qemu_arguments, read_metadata

NASTY = Path("/x/<&\"'>,=é")
DOMAIN = Domain(
    lab="quick",
    guest="web-1",
    memory=192 << 20,
    vcpus=2,
    accelerator="tcg",
    kernel=NASTY / "vmlinux",
    initrd=NASTY / "initrd",
    cmdline="root=/dev/vda quiet",
    console_log=NASTY / "console.log",
    frontend="nbd",
    disk=NASTY / "disk.qcow2",
    swap=NbdSwap(NASTY / "nbd.sock"),
)


def tree(domain: Domain) -> ET.Element:
    return ET.fromstring(domain_xml(domain, name="n", state=Path("/s"), ssh_port=2222))


def devices(domain: Domain) -> dict[str, dict[str, object]]:
    """QEMU's -device and -blockdev arguments by their driver."""
    arguments = qemu_arguments(domain, 2222)
    values = [json.loads(text) for text in arguments if text.startswith("{")]
    return {value["driver"]: value for value in values}


def test_what_is_written_is_read_back() -> None:
    metadata = tree(DOMAIN).find(f"metadata/{{{NAMESPACE}}}guest")
    assert metadata is not None
    read = read_metadata(ET.tostring(metadata, encoding="unicode"), uuid="u", state="running")
    assert read == (
        Path("/s"),
        GuestState("quick", "web-1", "u", "running", "tcg", "nbd", 2222, NASTY / "console.log"),
    )


@pytest.mark.parametrize("xml", ["", "<a", "<a/>", "<a state='s' lab='l' guest='g'/>"])
def test_other_metadata_is_told_apart(xml: str) -> None:
    with pytest.raises(ValueError, match="metadata"):
        read_metadata(xml, uuid="u", state="running")


def test_paths_with_markup_survive() -> None:
    root = tree(DOMAIN)
    source = root.find("devices/disk/source")
    assert source is not None
    assert source.get("file") == str(NASTY / "disk.qcow2")
    assert root.findtext("os/kernel") == str(NASTY / "vmlinux")
    assert devices(DOMAIN)["nbd"]["server"] == {"type": "unix", "path": str(NASTY / "nbd.sock")}


def test_a_timer_that_is_late_is_no_panic() -> None:
    assert "no_timer_check" in tree(DOMAIN).findtext("os/cmdline", "").split()


def test_panic_ends_the_domain() -> None:
    root = tree(DOMAIN)
    assert root.findtext("os/cmdline", "").split()[-1] == "panic=-1"
    assert root.findtext("on_reboot") == root.findtext("on_crash") == "destroy"


def test_emulated_cpu_copies_pages_in_words() -> None:
    off = {
        feature.get("name")
        for feature in tree(DOMAIN).findall("cpu/feature")
        if feature.get("policy") == "disable"
    }
    assert off == {"erms", "fsrm", "sse4.2"}
    assert tree(replace(DOMAIN, accelerator="kvm")).find("cpu/feature") is None


def test_barriers_of_one_emulated_processor_are_kept() -> None:
    """QEMU 7.2 leaves them out where there can be no second one; the guest misses interrupts."""

    def vcpus(count: int, accelerator: AcceleratorKind) -> tuple[str | None, str | None]:
        vcpu = tree(replace(DOMAIN, vcpus=count, accelerator=accelerator)).find("vcpu")
        assert vcpu is not None
        return vcpu.get("current"), vcpu.text

    assert vcpus(1, "tcg") == ("1", "2")
    assert vcpus(2, "tcg") == (None, "2")
    assert vcpus(1, "kvm") == (None, "1")


def test_store_that_is_away_or_full_does_not_end_a_guest() -> None:
    found = devices(DOMAIN)
    assert found["nbd"]["reconnect-delay"] == 3600
    assert found["nbd"]["discard"] == "unmap"
    assert found["virtio-blk-pci"]["werror"] == found["virtio-blk-pci"]["rerror"] == "report"


def test_disk_frontend_differs_in_the_node_alone() -> None:
    disk = devices(replace(DOMAIN, swap=DiskSwap(NASTY / "swap")))
    assert disk["virtio-blk-pci"] == devices(DOMAIN)["virtio-blk-pci"]
    assert disk["raw"]["discard"] == "unmap"


def test_relay_has_two_ports_that_find_the_store_again_and_no_disk() -> None:
    domain = replace(DOMAIN, swap=RelayPorts(NASTY / "relay.sock", NASTY / "ctl.sock"))
    assert "virtio-blk-pci" not in devices(domain)
    ports = {
        channel.find("target").get("name"): channel.find("source")  # type: ignore[union-attr]
        for channel in tree(domain).findall("devices/channel")
    }
    assert list(ports) == ["org.kztlab.relay.0", "org.kztlab.ctl.0"]
    for socket, source in zip(("relay.sock", "ctl.sock"), ports.values(), strict=True):
        assert source is not None
        assert (source.get("mode"), source.get("path")) == ("connect", str(NASTY / socket))
        reconnect = source.find("reconnect")
        assert reconnect is not None
        assert reconnect.attrib == {"enabled": "yes", "timeout": "1"}


def test_tmem_has_two_ports_and_a_disk_for_what_the_store_refuses() -> None:
    disk = DiskSwap(NASTY / "swap.raw")
    domain = replace(DOMAIN, swap=TmemSwap(disk, NASTY / "tmem.sock", NASTY / "ctl.sock"))
    assert devices(domain) == devices(replace(DOMAIN, swap=disk))
    channels = tree(domain).findall("devices/channel")
    ports = [
        (channel.find("target").get("name"), channel.find("source").get("path"))  # type: ignore[union-attr]
        for channel in channels
    ]
    assert ports == [
        ("org.kztlab.tmem.0", str(NASTY / "tmem.sock")),
        ("org.kztlab.ctl.0", str(NASTY / "ctl.sock")),
    ]


def test_queues_that_the_store_serves_need_shared_memory_and_find_the_store_again() -> None:
    domain = replace(DOMAIN, swap=VhostSwap(NASTY / "vhost.sock"), vcpus=40)
    assert "virtio-blk-pci" not in devices(domain)
    root = tree(domain)
    assert root.find("memoryBacking/source[@type='memfd']") is not None
    assert root.find("memoryBacking/access[@mode='shared']") is not None
    (disk,) = root.findall("devices/disk[@type='vhostuser']")
    source, driver, target = (disk.find(tag) for tag in ("source", "driver", "target"))
    assert source is not None
    assert driver is not None
    assert target is not None
    assert source.get("path") == str(NASTY / "vhost.sock")
    assert driver.get("queues") == "16"  # the most that the store serves
    assert target.get("dev") != "vda"
    reconnect = source.find("reconnect")
    assert reconnect is not None
    assert reconnect.attrib == {"enabled": "yes", "timeout": "1"}
    assert tree(DOMAIN).find("memoryBacking") is None


def test_own_devices_have_slots_of_their_own() -> None:
    found = devices(DOMAIN)
    assert found["virtio-blk-pci"]["addr"] != found["virtio-net-pci"]["addr"]
    assert "virtio-blk-pci" not in devices(replace(DOMAIN, swap=None))


def test_guest_cannot_reach_the_hosts_network() -> None:
    netdev = qemu_arguments(DOMAIN, 2222)[1]
    assert "restrict=on" in netdev.split(",")
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in netdev.split(",")


def test_translated_code_is_bounded_under_tcg_alone() -> None:
    """QEMU's default cache is several times the memory of a small guest."""
    cache = tree(DOMAIN).find("features/tcg/tb-cache")
    assert cache is not None
    assert (cache.text, cache.attrib["unit"]) == ("128", "MiB")
    assert tree(replace(DOMAIN, accelerator="kvm")).find("features/tcg") is None
