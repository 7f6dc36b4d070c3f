# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things lie on the host.

| | an ordinary user | root |
|---|---|---|
| state: labs and runs | `$XDG_STATE_HOME/kztlab` | `/var/lib/kztlab` |
| cache: images, kernels, probes | `$XDG_CACHE_HOME/kztlab` | `/var/cache/kztlab` |
| runtime: sockets | `$XDG_RUNTIME_DIR/kztlab`, else `/tmp/kztlab-UID` | `/run/kztlab` |

`KZTLAB_STATE`, `KZTLAB_CACHE` and `KZTLAB_RUNTIME` each move one of them: two kztlabs that share
none know nothing of each other. As root, QEMU and the store run as the service user: whatever they
open has to be theirs (`Places.own`), in folders that stay root's (`Places.folder`).
"""

from __future__ import annotations

import hashlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE_USER = "kztlab"

SOCKET_PATH_MAX = 107
"""Bytes in a unix socket's path: `sun_path` has 108 and the last one is the terminator."""


@dataclass(frozen=True, slots=True)
class Places:
    """The three folders of one kztlab, and the user that its QEMUs and stores run as."""

    state: Path
    cache: Path
    runtime: Path
    user: str | None
    """The service user when kztlab is root; None when everything runs as the caller."""

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> Places:
        """The places of the calling user; as root raises `HostUnable` without the service user."""
        uid = os.getuid()
        if uid == 0:
            _account(SERVICE_USER)
            state, cache = Path("/var/lib/kztlab"), Path("/var/cache/kztlab")
            runtime = Path("/run/kztlab")
        else:
            home = Path.home()
            state = Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "kztlab"
            cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "kztlab"
            shared = Path("/tmp")  # noqa: S108  -- `folder` refuses one that somebody else made
            given = environ.get("XDG_RUNTIME_DIR")
            runtime = Path(given) / "kztlab" if given else shared / f"kztlab-{uid}"
        return cls(
            state=Path(environ.get("KZTLAB_STATE") or state).absolute(),
            cache=Path(environ.get("KZTLAB_CACHE") or cache).absolute(),
            runtime=Path(environ.get("KZTLAB_RUNTIME") or runtime).absolute(),
            user=SERVICE_USER if uid == 0 else None,
        )

    @property
    def labs(self) -> Path:
        return self.state / "labs"

    def lab(self, name: str) -> Path:
        return self.labs / name

    @property
    def runs(self) -> Path:
        return self.state / "runs"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def kernels(self) -> Path:
        return self.cache / "kernels"

    def lab_id(self, name: str) -> str:
        """Eight hex digits that tell this lab from any other on the host, of any user."""
        return hashlib.sha256(bytes(self.lab(name))).hexdigest()[:8]

    def sockets(self, name: str) -> Path:
        """The lab's folder for sockets: short, whatever the lab's name and state folder."""
        return self.runtime / self.lab_id(name)

    def account(self) -> pwd.struct_passwd:
        """Whoever QEMU and the store run as."""
        return _account(self.user) if self.user else pwd.getpwuid(os.getuid())

    def folder(self, path: Path, mode: int = 0o700) -> Path:
        """Make sure that `path` is a folder of the caller's own, creating what is missing.

        The service user may pass it, but change nothing in it: where root writes, nobody else may
        lay a link. Raises `HostUnable` if it cannot be made, or if somebody else was there first:
        a folder under /tmp that another user made could be watched or swapped by them.
        """
        passed = mode | 0o111 if self.user else mode
        for part in (*reversed(path.parents), path):
            self._make(part, passed, os.getuid())
        return self._checked(path)

    def service_folder(self, path: Path) -> Path:
        """Make sure that `path` is a folder of the service user's alone, in one of the caller's."""
        if not path.parent.exists():
            self.folder(path.parent)
        self._make(path, 0o700, self.account().pw_uid)
        return self._checked(path)

    def _make(self, path: Path, mode: int, owner: int) -> None:
        """Make a folder that is missing; one of ours that is the other user's changes hands."""
        try:
            if not path.exists():
                path.mkdir(mode=mode, exist_ok=True)
                path.chmod(mode)  # whatever the umask
            ours = any(path.is_relative_to(each) for each in (self.state, self.cache, self.runtime))
            if self.user and ours and path.lstat().st_uid in self._users() - {owner}:
                os.chown(path, owner, -1, follow_symlinks=False)
                path.chmod(mode)
        except OSError as error:
            raise HostUnable(f"cannot create the folder {path}: {error.strerror}") from error

    def _checked(self, path: Path) -> Path:
        if not path.is_dir():
            raise HostUnable(f"{path} is in the way: it is not a folder")
        if path.lstat().st_uid not in self._users():
            raise HostUnable(f"the folder {path} belongs to another user", hint="remove it")
        return path

    def _users(self) -> set[int]:
        return {os.getuid(), self.account().pw_uid}

    def own(self, path: Path) -> None:
        """Give a file or folder to the service user; nothing to do when there is none."""
        if self.user:
            account = self.account()
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def check_reach(self, path: Path) -> Path:
        """`path`, if the service user can get at it; else `HostUnable` names the obstacle.

        Owning a file does not help below a folder that one cannot pass.
        """
        for folder in reversed(path.absolute().parents):
            if not self.may(folder, os.X_OK):
                raise HostUnable(
                    f"the user {self.account().pw_name} cannot reach {path}: {folder} is closed",
                    hint="QEMU and the store never run as root; use another folder",
                )
        return path

    def may(self, path: Path, access: int) -> bool:
        """Whether the service user has `access` (as for `os.access`) to what is at `path`."""
        if self.user is None:
            return os.access(path, access)
        account, info = self.account(), path.stat()
        if info.st_uid == account.pw_uid:
            granted = info.st_mode >> 6
        elif info.st_gid in os.getgrouplist(account.pw_name, account.pw_gid):
            granted = info.st_mode >> 3
        else:
            granted = info.st_mode
        return granted & access == access

    @staticmethod
    def check_socket(path: Path) -> Path:
        """`path`, if it fits in a socket address; else `HostUnable`."""
        length = len(bytes(path))
        if length > SOCKET_PATH_MAX:
            raise HostUnable(
                f"the socket path {path} has {length} bytes, at most {SOCKET_PATH_MAX} fit",
                hint="set KZTLAB_RUNTIME to a shorter folder",
            )
        return path


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise HostUnable(
            f"the service user {name} does not exist",
            hint="as root, QEMU and the store run as this user, create it with: useradd --system "
            f"--home-dir /var/lib/{name} --shell /usr/sbin/nologin {name}",
        ) from None
