# SPDX-License-Identifier: GPL-2.0-or-later
from pathlib import Path

import pytest

from kztmem.config import load
from kztmem.errors import BadInput
from kztmem.settings import ClientSettings, Spill, Terms


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kztmemd.toml"


def test_a_file(file: Path) -> None:
    file.write_text(
        'memory = "512MiB"\nspill = "4GiB"\ncodec = "lzo"\nsockets = "/run/s"\nuser = "nobody"\n'
        'dedup = "client"\npersistent = "zbud"\nephemeral = "zbud"\n'
        '[clients.a]\nswap = "1GiB"\n[clients.b]\nswap = 8192\ndedup = "domain:x"\n'
        'weight = 2\ncap = "1MiB"\nreservation = "none"\n'
    )
    config = load(file)
    assert config.memory == 512 << 20
    assert config.spill == Spill(4 << 30)
    assert config.codec == "lzo"
    assert (config.persistent, config.ephemeral) == ("zbud", "zbud")
    assert config.sockets == Path("/run/s")
    assert config.user == "nobody"
    assert config.dedup == "client"
    assert config.client_settings() == {
        "a": ClientSettings(swap=1 << 30),
        "b": ClientSettings(
            swap=8192, dedup="domain:x", terms=Terms(weight=2, cap=1 << 20, reservation=0)
        ),
    }


def test_an_empty_file_says_nothing(file: Path) -> None:
    file.write_text("")
    assert load(file).memory is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory = 512MiB", "is not TOML"),
        ("memory = '1GiB'\nmemory = '2GiB'", "is not TOML"),
        ("memroy = '1GiB'", "memroy: unknown key (did you mean memory?)"),
        (f"a = {'[' * 100_000}", "is not TOML"),
        ("colour = 1", "colour: unknown key (known keys: memory, spill, codec"),
        ("memory = '512MB'", "memory: '512MB' has an unknown unit (did you mean MiB?"),
        ("memory = [1]", "memory: not a str or int"),
        ("spill = '1KiB'", "spill: 1KiB are not a limit that a spill file can have"),
        ("persistent = 'slab'", "persistent: 'slab' is no allocator (one of zsmalloc, xvmalloc"),
        ("ephemeral = 'zsmalloc'", "ephemeral: 'zsmalloc' is no allocator (one of zbud)"),
        ("codec = 'gzip'", "codec: unknown codec 'gzip' (one of lzo"),
        ("codec = 1", "codec: not a str"),
        ("dedup = 'on'", "dedup: unknown deduplication 'on' (one of off, client and"),
        ("[clients.a]\nswap = 5000", "clients.a.swap: 5000 bytes are not whole pages"),
        ("[clients.a]\nswap = 4096\nweight = 0", "clients.a.weight: 0 is not a weight (from 1"),
        ("[clients.a]\nswap = 4096\ncap = '1MB'", "clients.a.cap: '1MB' has an unknown unit"),
        ("[clients.a]\nsize = 1", "clients.a.size: unknown key"),
        ("[clients.a]", "clients.a.swap: this key is needed"),
        ("[clients.A]\nswap = 8192", "'A' is not a client's name (use 1 to 31"),
    ],
)
def test_mistakes_are_named(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        load(file)
    assert str(file) in str(error.value)
    assert says in str(error.value)


def test_all_mistakes_are_shown_at_once(file: Path) -> None:
    file.write_text("memory = '1MB'\ncodec = 'gzip'\n")
    with pytest.raises(BadInput) as error:
        load(file)
    assert len(str(error.value).splitlines()) == 2
