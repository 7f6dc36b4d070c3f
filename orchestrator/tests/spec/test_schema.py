# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.spec import Cluster, init_text, json_schema, load, reference
from kztlab.spec.schema import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs" / "cluster-yaml.md"


def sections() -> Iterator[dict[str, Any]]:
    schema = json_schema()
    yield schema
    yield from schema["$defs"].values()


def test_the_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m kztlab.spec > docs/cluster-yaml.md"
    )


def test_every_key_is_described_and_its_default_is_written_as_in_the_file() -> None:
    for section in sections():
        for key, described in section["properties"].items():
            assert described["description"], key
            assert ("default" in described) != (key in section.get("required", [])), key
    guest = json_schema()["$defs"]["GuestSpec"]["properties"]
    assert guest["swap"]["default"] == "1GiB"
    assert guest["boot_timeout"]["default"] == "5min"


@pytest.mark.parametrize("model", SECTIONS, ids=lambda model: model.__name__)
def test_defaults_of_the_schema_match_its_patterns(model: type[Any]) -> None:
    schema = json_schema()
    section = schema if model is Cluster else schema["$defs"][model.__name__]
    for key, described in section["properties"].items():
        default = described.get("default")
        if "pattern" in described and default is not None:
            assert re.search(described["pattern"], default), key


def test_no_key_beyond_the_known_ones_is_allowed() -> None:
    assert all(section["additionalProperties"] is False for section in sections())
    assert json_schema()["properties"]["guests"]["additionalProperties"] is False


def test_the_example_takes_the_labs_name(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(init_text("mine"), encoding="utf-8")
    assert load(path).lab == "mine"
