# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an image's packages come from: the mirrors that the host itself uses.

apt is asked, rather than its files read: it knows .list and deb822 .sources, options, disabled
entries and its own configuration. `update --print-uris` needs no network, no lock and no right.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""Has the keys of later releases too: those of trixie since Debian 12.11."""

_PACKAGES = re.compile(
    r"^'(?P<mirror>[^']+?)/?/dists/(?P<suite>[^']+)/main/binary-[^/']+/Packages\b", re.MULTILINE
)
_SCHEMES = ("http://", "https://")
_TRANSPORT = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until")


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of one mirror."""

    mirror: str
    suite: str


def host_sources(environ: Mapping[str, str] = os.environ) -> list[Source]:
    """What the host's apt would fetch lists of binary packages from, in its order.

    Without those that are known, from an earlier update, to be others' than Debian's.
    """
    uris = _ask(["apt-get", "update", "--print-uris"], environ)
    origins = _ask(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"], environ)
    known = (line.rpartition(" ") for line in origins.splitlines())
    others = {mirror.rstrip("/") for origin, _, mirror in known if origin != "Debian"}
    found = (Source(m["mirror"], m["suite"]) for m in _PACKAGES.finditer(uris))
    # Each list of an architecture names its suite again.
    return [source for source in dict.fromkeys(found) if source.mirror not in others]


def host_transport(environ: Mapping[str, str] = os.environ) -> list[str]:
    """How the host's apt reaches its mirrors, above all by which proxy: lines of an apt.conf.

    mmdebstrap shows apt the new system's configuration, and so hides the host's.
    """
    lines = _ask(["apt-config", "dump", *_TRANSPORT], environ).splitlines()
    return [line for line in lines if not line.endswith('"";')]


def for_suite(sources: list[Source], suite: str, *, host: str | None = None) -> list[Source]:
    """The same mirrors' `suite`, with its updates and security fixes if the host has its own.

    `host` is the code name of the host's release. Raises `HostUnable` if no mirror has it.
    """
    host = host or _codename()
    wanted = {f"{host}{kind}": f"{suite}{kind}" for kind in ("", "-updates", "-security")}
    found = [
        Source(source.mirror, wanted[source.suite])
        for source in sources
        if source.suite in wanted and source.mirror.startswith(_SCHEMES)
    ]
    if suite not in {source.suite for source in found}:
        raise HostUnable(
            f"apt's sources name no mirror that has {host or 'this system'}, so none for {suite}",
            hint="images are built on Debian 12 or 13, from the mirror in /etc/apt",
        )
    return found


def sources_list(sources: list[Source]) -> str:
    """A sources.list for mmdebstrap."""
    return "".join(f"deb [signed-by={KEYRING}] {s.mirror} {s.suite} main\n" for s in sources)


def _ask(command: list[str], environ: Mapping[str, str]) -> str:
    asked = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environ, "LC_ALL": "C"}
    )
    if asked.returncode:
        raise HostUnable(f"apt cannot tell its configuration: {asked.stderr.strip()}")
    return asked.stdout


def _codename() -> str:
    release = platform.freedesktop_os_release()
    return release["VERSION_CODENAME"] if release.get("ID") == "debian" else ""
