# SPDX-License-Identifier: GPL-2.0-or-later
"""apt's sources in both of their formats, as apt itself reads them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kztlab.errors import HostUnable
from kztlab.image.sources import (
    Source,
    for_suite,
    host_sources,
    host_transport,
    sources_list,
)

if TYPE_CHECKING:
    from pathlib import Path

LIST = """\
deb [arch=amd64] http://one.example/debian bookworm main contrib
deb http://one.example/debian/ bookworm-updates main
deb-src http://source.example/debian bookworm main
# deb http://comment.example/debian bookworm main
deb cdrom:[Debian 12]/ bookworm main
deb http://other.example/tools stable main
"""

DEB822 = """\
Types: deb deb-src
URIs: http://two.example/debian http://three.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

# The security archive.
Types: deb
URIs: https://security.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def apt(tmp_path: Path) -> dict[str, str]:
    """An environment in which apt has the configuration below tmp_path and no other."""
    for folder in ("etc/apt.conf.d", "etc/sources.list.d", "lists/partial"):
        (tmp_path / folder).mkdir(parents=True)
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc "{tmp_path}/etc/"; Dir::Etc::Parts "apt.conf.d"; '
        f'Dir::Etc::SourceList "sources.list"; Dir::Etc::SourceParts "sources.list.d"; '
        f'Dir::State::Lists "{tmp_path}/lists";\n'
    )
    return os.environ | {"APT_CONFIG": str(config)}


def test_one_line_format(apt: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "etc/sources.list").write_text(LIST)
    found = set(host_sources(apt))
    assert {
        Source("http://one.example/debian", "bookworm"),
        Source("http://one.example/debian", "bookworm-updates"),
        Source("http://other.example/tools", "stable"),
    } < found
    assert not [source for source in found if "comment" in source.mirror]


def test_deb822_format(apt: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "etc/sources.list.d/debian.sources").write_text(DEB822)
    assert set(host_sources(apt)) == {
        Source("http://two.example/debian", "bookworm"),
        Source("http://two.example/debian", "bookworm-updates"),
        Source("http://three.example/debian", "bookworm"),
        Source("http://three.example/debian", "bookworm-updates"),
        Source("https://security.example/debian-security", "bookworm-security"),
    }


def test_what_others_publish_for_the_same_release_is_left_out(
    apt: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "etc/sources.list").write_text(
        "deb http://one.example/debian bookworm main\ndeb http://tools.example bookworm main\n"
    )
    lists = tmp_path / "lists"
    (lists / "tools.example_dists_bookworm_main_binary-amd64_Packages").touch()
    (lists / "tools.example_dists_bookworm_Release").write_text(
        "Origin: Tools and Sons\nCodename: bookworm\nArchitectures: amd64\nComponents: main\n"
    )
    assert host_sources(apt) == [Source("http://one.example/debian", "bookworm")]


def test_broken_sources_are_told(apt: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "etc/sources.list").write_text("deb nonsense\n")
    with pytest.raises(HostUnable, match=r"sources\.list"):
        host_sources(apt)


def test_proxies_are_carried_over_and_empty_settings_are_not(
    apt: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "etc/apt.conf.d/proxy").write_text(
        'Acquire::http::Proxy "http://proxy.example:3128"; Acquire::https::Proxy "";\n'
        'Dpkg::Options "--force-all";\n'
    )
    assert host_transport(apt) == ['Acquire::http::Proxy "http://proxy.example:3128";']


def test_another_suite_of_the_same_mirrors(apt: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "etc/sources.list").write_text(LIST)
    (tmp_path / "etc/sources.list.d/debian.sources").write_text(DEB822)
    chosen = for_suite(host_sources(apt), "trixie", host="bookworm")
    assert set(chosen) == {
        Source("http://one.example/debian", "trixie"),
        Source("http://one.example/debian", "trixie-updates"),
        Source("http://two.example/debian", "trixie"),
        Source("http://two.example/debian", "trixie-updates"),
        Source("http://three.example/debian", "trixie"),
        Source("http://three.example/debian", "trixie-updates"),
        Source("https://security.example/debian-security", "trixie-security"),
    }


def test_security_only_where_the_host_has_it() -> None:
    only = [Source("http://one.example/debian", "bookworm")]
    assert for_suite(only, "trixie", host="bookworm") == [
        Source("http://one.example/debian", "trixie")
    ]


@pytest.mark.parametrize(
    "sources",
    [
        [],
        [Source("http://one.example/debian", "bookworm-updates")],
        [Source("http://one.example/debian", "jammy")],
        [Source("cdrom://Debian 12", "bookworm")],
    ],
)
def test_a_host_without_a_usable_mirror_is_told(sources: list[Source]) -> None:
    with pytest.raises(HostUnable, match="no mirror"):
        for_suite(sources, "trixie", host="bookworm")


def test_the_list_names_the_keyring() -> None:
    text = sources_list([Source("http://one.example/debian", "trixie")])
    assert text.startswith("deb [signed-by=/usr/share/keyrings/")
    assert text.endswith("] http://one.example/debian trixie main\n")
