# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host lacks, and how it is told."""

from __future__ import annotations

import pytest

from kztlab import image, programs
from kztlab.errors import HostUnable
from kztlab.lab import doctor


def test_everything_missing_is_told_at_once_with_one_apt_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(programs, "DAEMONS", "/nonexistent")
    with pytest.raises(HostUnable) as caught:
        doctor.demand(["guests", "ssh"])
    for program in ("qemu-system-x86_64", "qemu-img", "libvirtd", "ssh"):
        assert f"no program {program}" in caught.value.message
    hint = caught.value.hint or ""
    assert hint.count("apt-get install") == 1
    for package in ("qemu-system-x86", "qemu-utils", "libvirt-daemon", "openssh-client"):
        assert f" {package}" in hint


def test_each_finding_has_a_remedy_or_is_fine() -> None:
    for finding in doctor.examine():
        assert finding.detail
        assert finding.ok == (finding.remedy is None)


def test_whatever_a_build_of_an_image_needs_is_looked_at() -> None:
    names = {finding.name for finding in doctor.examine()}
    assert image.NEEDED.keys() <= names


def test_only_what_is_asked_for_is_looked_at() -> None:
    assert {finding.purpose for finding in doctor.examine(["ssh"])} == {"ssh"}


def test_remedies_name_each_package_once() -> None:
    one = doctor.Finding("a", "guests", False, "no", "pkg", "apt-get install pkg")
    other = doctor.Finding("b", "images", False, "no", "pkg", "apt-get install pkg")
    odd = doctor.Finding("c", "store", False, "no", None, "mount something")
    assert doctor.remedies([one, other, odd]) == [doctor.apt_line(["pkg"]), "mount something"]
