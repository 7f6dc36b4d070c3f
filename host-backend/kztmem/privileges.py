# SPDX-License-Identifier: GPL-2.0-or-later
"""From root to the user who serves, taking along what only root can arrange.

Whatever goes wrong here is a warning: the pages are served either way.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kztmem.errors import BadInput, HostUnable
from kztmem.settings import DEFAULT_USER

if TYPE_CHECKING:
    from collections.abc import Iterable

OOM_SCORE_ADJ: Final = -900
"""The guests' pages are here: nearly anything is a better victim."""


@dataclass(frozen=True)
class User:
    """Whom to serve as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def current(cls) -> User:
        """Who runs this process."""
        return cls(_name(os.geteuid()), os.geteuid(), os.getegid())

    @classmethod
    def of(cls, path: Path) -> User:
        """Whom a file belongs to."""
        found = path.lstat()
        return cls(_name(found.st_uid), found.st_uid, found.st_gid)

    @classmethod
    def named(cls, name: str) -> User | None:
        """The user of that name, if there is one."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


def choose_user(wanted: str | None, state: Path, warnings: list[str]) -> User:
    """Whom to serve as: `wanted`, or for root the service user where that is possible."""
    current = User.current()
    if wanted is None and current.uid != 0:
        return current
    user = User.named(wanted or DEFAULT_USER)
    if user is None and wanted is not None:
        raise BadInput(f"there is no user {wanted!r}", key="--user")
    if user is None:
        warnings.append(f"serving as root: there is no user {DEFAULT_USER}")
        return current
    if user.uid == current.uid:
        return current
    if current.uid != 0:
        hint = f"leave it out: {current.name} serves"
        raise BadInput(f"only root can serve as {wanted}", key="--user", hint=hint)
    if not _can_reach(user, state):
        warnings.append(f"serving as root: user {user.name} cannot reach {state}")
        return current
    return user


def prepare_directory(path: Path, user: User, *, key: str) -> None:
    """Makes a directory of mode 0700 for `user`, or takes over an empty one.

    Raises `BadInput` for one that belongs to somebody else or that others may write to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise BadInput(f"cannot use {path}: {error.strerror}", key=key) from error
    try:
        found = os.fstat(directory)
        if found.st_uid not in {user.uid, os.geteuid()}:
            raise BadInput(f"{path} belongs to user {_name(found.st_uid)}", key=key)
        if stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            hint = f"chmod 700 {path}, or name a directory that does not exist"
            raise BadInput(f"others may write to {path}", key=key, hint=hint)
        if found.st_uid != user.uid:
            # Taking over a directory full of other things (think of /etc) is never what was meant.
            if any(path.iterdir()):
                raise BadInput(
                    f"{path} belongs to {_name(found.st_uid)} and is not empty",
                    key=key,
                    hint=f"chown it to {user.name}, serve as --user {_name(found.st_uid)}, "
                    "or name a new directory",
                )
            os.fchown(directory, user.uid, user.gid)
    finally:
        os.close(directory)


def raise_limits(warnings: list[str]) -> None:
    """Lets the arena be locked in memory and keeps the out-of-memory killer away."""
    if os.geteuid() == 0:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        # Without CAP_SYS_RESOURCE this fails; whether it matters shows when the arena is locked.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    try:
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE_ADJ}\n", encoding="ascii")
    except OSError as error:
        warnings.append(
            f"the out-of-memory killer may choose this daemon: cannot set oom_score_adj to "
            f"{OOM_SCORE_ADJ} ({error.strerror}; root can)"
        )


def become(user: User) -> None:
    """Gives root up for good; does nothing when `user` runs this process already."""
    if user.uid == os.geteuid():
        return
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _can_reach(user: User, path: Path) -> bool:
    """Whether `user` may walk to `path`: asked of the kernel, in a child that is that user."""
    existing: Iterable[Path] = (parent for parent in path.parents if parent.exists())
    nearest = next(iter(existing), Path("/"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            become(user)
            code = 0 if os.access(nearest, os.X_OK) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise HostUnable(f"cannot find out whether {user.name} can reach {path}")
    return os.waitstatus_to_exitcode(status) == 0


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
