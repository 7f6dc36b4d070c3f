# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's kernel is told by its command line."""

from __future__ import annotations

from kztlab.lab.boot import module_parameters
from kztlab.spec import GuestSpec, TmemSpec


def test_the_module_has_its_own_defaults_unless_the_file_says_otherwise() -> None:
    defaults = {"cleancache": 1, "put_wait": 0, "admit": 1}
    defaults |= {"writeback": 1, "timeout": 10000, "slots": 256}
    assert module_parameters(GuestSpec(frontend="tmem")) == defaults
    tmem = TmemSpec(put_wait=True, admit=2, writeback=False, timeout=2.5, slots=64)
    assert module_parameters(GuestSpec(frontend="tmem", cleancache=False, tmem=tmem)) == {
        "cleancache": 0,
        "put_wait": 1,
        "admit": 2,
        "writeback": 0,
        "timeout": 2500,
        "slots": 64,
    }
