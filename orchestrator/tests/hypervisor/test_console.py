# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.hypervisor import console

if TYPE_CHECKING:
    from pathlib import Path

PANIC = b"[    2.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300\r\n"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\x1b[1;31mred\x1b[0mb", "aredb"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;c3RlYWw=\x1b\\text", "text"),
        ("\x1bctext\x1b7\x1b", "text7"),
        ("over\rwritten\n\ttab", "overwritten\n\ttab"),
        ("\x9b31mc1\x00\x7f", "31mc1"),
    ],
)
def test_nothing_reaches_the_terminal_but_text(raw: str, clean: str) -> None:
    assert console.clean(raw) == clean


def test_tail_is_the_last_lines_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\r\n\r\n" % n for n in range(100)) + b"\xff\x1b[0munfinished")
    assert console.tail(log, 3) == ["line 98", "line 99", "\ufffdunfinished"]


def test_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert console.tail(tmp_path / "none") == []
    assert console.panic(tmp_path / "none") is None


def test_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, 2)
        file.write(b"\nend\n")
    assert console.tail(log, 1) == ["end"]


def test_panic_is_found_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"[    2.0] fine\r\n" + PANIC + b"[    2.2] CPU: 0 PID: 1\r\n")
    assert console.panic(log) == "Attempted to kill init! exitcode=0x00000300"
    log.write_bytes(b"all is well\r\n")
    assert console.panic(log) is None


def test_tail_of_a_panic_shows_what_led_to_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = b"".join(b"before %d\n" % n for n in range(30))
    log.write_bytes(before + PANIC + b"".join(b"trace %d\n" % n for n in range(50)))
    tail = console.tail(log, 8)
    assert len(tail) == 8
    assert tail[0] == "before 26"
    assert tail[-1] == "trace 2"
