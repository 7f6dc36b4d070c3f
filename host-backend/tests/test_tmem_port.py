# SPDX-License-Identifier: GPL-2.0-or-later
"""The tmem protocol's frames, in Python."""

import pytest
from tests.support import tmem_port

VECTORS = {name: (frame, stream) for name, frame, stream in tmem_port.vectors()}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_read_and_made_as_it_is(name: str) -> None:
    frame, stream = VECTORS[name]
    assert bytes(frame) == stream
    assert tmem_port.read(stream) == (frame, b"")
    assert tmem_port.read(stream[:-1]) is None


def test_the_bytes_in_the_documentation_are_vectors() -> None:
    text = (tmem_port.VECTORS.parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    section = text.split("## The tmem protocol")[1]
    blocks = [
        bytes.fromhex("".join(block.split())) for block in section.split("\n\n") if is_hex(block)
    ]
    documented = [VECTORS["get-three"], VECTORS["reset"], VECTORS["hello-fresh"]]
    assert blocks == [stream for _, stream in documented]


def is_hex(block: str) -> bool:
    """Whether a paragraph is made of bytes alone."""
    lines = block.splitlines()
    return bool(lines) and all(
        line.startswith("    ") and set(line) <= set("0123456789abcdef ") for line in lines
    )
