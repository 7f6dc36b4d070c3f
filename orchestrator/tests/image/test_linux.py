# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest kernels from source: which version is taken, what is refused, what counts for the cache."""

from __future__ import annotations

import dataclasses
import re
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


def test_a_kernel_without_the_series_is_another_one_that_stays_when_that_changes(
    copied: Linux,
) -> None:
    plain = dataclasses.replace(copied, patched=False)
    before = plain.digest()
    assert before != copied.digest()
    patches = sorted((copied.folder / "patches").glob("*.patch"))
    patches[0].unlink()
    (copied.folder / "patches/config").write_text("CONFIG_TMEM=y\n")
    assert plain.digest() == before
    (copied.folder / "config").write_text("CONFIG_64BIT=y\n")
    assert plain.digest() != before


def test_the_series_brings_all_options_that_are_its_own(kernel: Linux) -> None:
    """Kconfig would not leave them in a kernel without it."""
    patches = "".join(path.read_text() for path in (FOLDER / "patches").glob("*.patch"))
    own = {f"CONFIG_{name}" for name in re.findall(r"^\+config (\w+)$", patches, re.MULTILINE)}
    assert own == {"CONFIG_TMEM", "CONFIG_TMEM_FAULTS", "CONFIG_KZTMEM"}
    plain = dataclasses.replace(kernel, patched=False)
    assert [path.name for path in kernel.fragments()] == ["config"]
    assert plain.fragments() == []
    assert own <= _options(FOLDER / "patches/config")
    assert not own & _options(FOLDER / "config")


def _options(fragment: Path) -> set[str]:
    return set(re.findall(r"CONFIG_\w+", fragment.read_text()))


def test_two_images_differ_in_their_kernels_series_alone() -> None:
    patched, plain = recipe("debian-trixie-tmem"), recipe("debian-trixie-plain")
    assert patched.linux is not None
    assert plain == dataclasses.replace(
        patched,
        name="debian-trixie-plain",
        folder=plain.folder,
        linux=dataclasses.replace(patched.linux, patched=False),
    )
    assert [path.name for path in plain.folder.iterdir()] == ["recipe.toml"]


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
    next((copied.folder / "patches").glob("*.patch")).unlink()
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


def test_a_kernel_is_collected_in_a_folder_given_from_here(tmp_path: Path) -> None:
    """The script's last step, with any ELF file for a kernel and for a module."""
    files = {
        "include/config/kernel.release": "6.12.0",
        "modules.order": "drivers/misc/some.o\n",
        "modules.builtin": "",
        "modules.builtin.modinfo": "",
    }
    for name, content in files.items():
        (tmp_path / "build" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "build" / name).write_text(content)
    (tmp_path / "build/drivers/misc").mkdir(parents=True)
    for name in ("vmlinux", "drivers/misc/some.ko"):
        shutil.copy("/bin/true", tmp_path / "build" / name)
    subprocess.run([FOLDER / "build", "collect", "result"], cwd=tmp_path, check=True)
    modules = tmp_path / "result/modules/6.12.0"
    assert (tmp_path / "result/vmlinuz-6.12.0").is_file()
    assert (modules / "kernel/some.ko").is_file()
    assert (modules / "modules.order").read_text() == "kernel/some.ko\n"
