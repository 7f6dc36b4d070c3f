# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk under the labs fills up while a guest boots: in a mount namespace, on a small tmpfs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.integration.conftest import COMMAND

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.fault]

TEXT = "lab: full\nguests: {g: {memory: 128MiB, swap: 256MiB}}\n"

SCRIPT = """\
mount -t tmpfs -o size=4g,mode=711 none "$DISK"
"$COMMAND" up "$SPEC" &
up=$!
until [ -s "$DISK/state/labs/full/guests/g/disk.qcow2" ]; do sleep 0.02; done
until mount -o "remount,size=$(($(df -k --output=used "$DISK" | tail -n 1)))k" "$DISK"; do :; done
wait $up
echo "up: $?"
"$COMMAND" down --all
echo "down: $?"
ls -A "$DISK/state/labs"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make mount namespaces")
def test_it_is_told_and_the_lab_goes_down(kztlab: Kztlab) -> None:
    disk = kztlab.home / "disk"
    disk.mkdir()
    full = replace(
        kztlab,
        places=replace(kztlab.places, state=disk / "state", runtime=kztlab.home / "run-full"),
    )
    spec = full.spec("full", TEXT)
    names = {"DISK": str(disk), "COMMAND": str(COMMAND), "SPEC": str(spec)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT],
        env=full.environ | names,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["up: 4", "full: down", "down: 0"], done.stderr
    assert "is full, at step" in done.stderr
    assert "a bug in kztlab" not in done.stderr
    assert full.leftovers() == []
