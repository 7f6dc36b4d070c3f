# SPDX-License-Identifier: GPL-2.0-or-later
"""Which test boots are remembered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab.hypervisor import accelerator, probe

if TYPE_CHECKING:
    from kztlab.hypervisor import Hypervisor
    from kztlab.image import Image
    from kztlab.places import Places

pytestmark = pytest.mark.guest


def test_a_boot_that_could_not_be_tried_is_not_remembered(
    hypervisor: Hypervisor, places: Places, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_DEVICE", Path("/dev/null"))  # opens on every machine
    monkeypatch.setattr(probe, "_MEMORY", 1 << 50)
    cache = places.cache / "accelerator"
    found = accelerator(hypervisor, places, image)
    assert found.kind == "tcg"
    assert found.reason.startswith("a test boot under KVM failed: cannot start the guest")
    assert list(cache.iterdir()) == []

    damaged = cache / f"{probe._key(hypervisor, places, image)}.json"
    damaged.write_text("{")
    assert accelerator(hypervisor, places, image) == found


def test_what_a_boot_came_to_is_remembered(
    hypervisor: Hypervisor, places: Places, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_DEVICE", Path("/dev/null"))
    cache = places.folder(places.cache / "accelerator")
    known = cache / f"{probe._key(hypervisor, places, image)}.json"
    known.write_text('{"kind": "kvm", "reason": "a test boot took 1.0 s"}')
    assert accelerator(hypervisor, places, image) == ("kvm", "a test boot took 1.0 s")
