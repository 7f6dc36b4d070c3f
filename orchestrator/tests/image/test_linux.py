# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest kernels from source: which version is taken, what is refused, what counts for the cache."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from kztlab.errors import BadInput, HostUnable
from kztlab.image import linux
from kztlab.image.linux import Linux, read_linux
from kztlab.image.recipe import REPOSITORY, recipe
from kztlab.places import Places

FOLDER = REPOSITORY / "images/kernel"


@pytest.fixture
def kernel() -> Linux:
    return read_linux(FOLDER)


@pytest.fixture
def copied(tmp_path: Path, kernel: Linux) -> Linux:
    shutil.copytree(kernel.folder, tmp_path / "kernel")
    return dataclasses.replace(kernel, folder=tmp_path / "kernel")


def test_the_pinned_version_is_accepted_and_taken_before_newer_ones(kernel: Linux) -> None:
    assert kernel.pinned in kernel.accepted
    offered = ["6.12.999-1", f"{kernel.pinned}-1~deb12u1", "6.12.1-1"]
    assert kernel.choose(offered) == f"{kernel.pinned}-1~deb12u1"


def test_without_it_the_newest_that_is_accepted_is_taken(kernel: Linux) -> None:
    some = dataclasses.replace(kernel, pinned="6.12.5", accepted=("6.12.9", "6.12.5", "6.12.10"))
    assert some.choose(["6.12.11-1", "6.12.10-2", "6.12.9-1"]) == "6.12.10-2"


def test_other_versions_are_refused_by_name(kernel: Linux) -> None:
    with pytest.raises(HostUnable) as caught:
        kernel.choose(["6.12.998-1", "6.12.999-1"])
    assert f"for Linux {', '.join(kernel.accepted)}, apt offers 6.12.998-1, 6.12.999-1" in str(
        caught.value
    )


def test_a_host_without_such_sources_is_told(kernel: Linux) -> None:
    with pytest.raises(HostUnable, match="apt knows no package linux-source") as caught:
        kernel.choose([])
    assert "apt-get update" in str(caught.value.hint)


def test_only_what_the_kernel_is_made_of_counts(copied: Linux) -> None:
    before = copied.digest()
    (copied.folder / "README.md").write_text("For people.\n")
    (copied.folder / "selftest/store.c").write_text("int main(void) {}\n")
    (copied.folder / "debug/kasan.config").write_text("CONFIG_KASAN=y\n")
    assert copied.digest() == before
    (copied.folder / "config").write_text("CONFIG_64BIT=y\n")
    assert copied.digest() != before


def test_a_kernel_that_checks_itself_is_another_one(
    copied: Linux, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(linux.DEBUG, "lockdep,kasan")
    checking = read_linux(copied.folder)
    assert checking.digest() != copied.digest()
    before = checking.digest()
    (copied.folder / "debug/kasan.config").write_text("CONFIG_KASAN=y\n")
    assert checking.digest() != before
    monkeypatch.setenv(linux.DEBUG, "lockdep,luck")
    with pytest.raises(BadInput, match="KZTLAB_KERNEL_DEBUG: no such kernel fragment: luck"):
        read_linux(copied.folder)


def test_an_image_changes_with_its_kernel(copied: Linux) -> None:
    image = dataclasses.replace(recipe("debian-trixie-tmem"), linux=copied)
    before = image.digest()
    next((copied.folder / "patches").iterdir()).unlink()
    assert image.digest() != before


def test_missing_tools_are_told_at_once(
    kernel: Linux, room: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        linux, "NEEDED", {"no-such-program": "flex", "/no/such/header": "libelf-dev"}
    )
    with pytest.raises(HostUnable, match="needs flex, libelf-dev") as caught:
        linux.ensure(kernel, places, lambda _step, _seconds: None)
    assert caught.value.hint == "apt-get install --no-install-recommends flex libelf-dev"
    assert not any((room / "cache/kernels").iterdir())


def test_a_line_that_kconfig_drops_is_told(tmp_path: Path) -> None:
    """The check of the script, on a made-up Kconfig that leaves one of two lines out."""
    for folder in ("linux/scripts/kconfig", "build", "kernel"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(FOLDER / "build", tmp_path / "kernel/build")
    (tmp_path / "kernel/config").write_text("CONFIG_KEPT=y\nCONFIG_DROPPED=y\n")
    (tmp_path / "linux/Makefile").write_text(
        "tinyconfig:\n\ttouch $(O)/.config\nolddefconfig:\n\techo CONFIG_KEPT=y >$(O)/.config\n"
    )
    merge = tmp_path / "linux/scripts/kconfig/merge_config.sh"
    merge.write_text("#!/bin/sh\n")
    merge.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "kernel/build", "configure"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "config: Kconfig does not leave it at: CONFIG_DROPPED=y\n"
