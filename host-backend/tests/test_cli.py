# SPDX-License-Identifier: GPL-2.0-or-later
import subprocess
import sys
from pathlib import Path

import pytest

from kztmem.cli import parse
from kztmem.errors import BadInput
from kztmem.settings import ClientSettings, Spill

STATE = ["--state", "/srv/store"]


def test_everything_at_once() -> None:
    options = (
        "--memory 512MiB --spill 4GiB,/disk/x/../s --codec zstd:3 --dedup domain:lab "
        "--persistent xvmalloc --ephemeral zbud "
        "--client a:1GiB --client b:8KiB "
        "--sockets /run/s --user nobody --detach"
    )
    invocation = parse([*STATE, *options.split()])
    settings = invocation.settings
    assert invocation.detach
    assert not invocation.remove
    assert settings.state == Path("/srv/store")
    assert settings.sockets == Path("/run/s")
    assert settings.memory == 512 << 20
    assert settings.spill == Spill(4 << 30, Path("/disk/s"))
    assert settings.codec == "zstd:3"
    assert (settings.persistent, settings.ephemeral) == ("xvmalloc", "zbud")
    assert settings.user == "nobody"
    assert settings.dedup == "domain:lab"
    assert settings.clients == {
        "a": ClientSettings(swap=1 << 30),
        "b": ClientSettings(swap=8192),
    }


def test_sockets_are_in_the_state_directory_by_default() -> None:
    assert parse(STATE).settings.sockets == Path("/srv/store")


def test_links_that_lead_nowhere_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadInput, match=r"--state: cannot use .*/loop'"):
        parse(["--state", f"{tmp_path}/loop"])


def test_a_state_directory_has_one_name_however_it_is_spelt(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    spelt = parse(["--state", f"{tmp_path}/link/../link"])
    assert spelt.settings.state == tmp_path / "real"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--memory", "512MB"], "--memory: '512MB' has an unknown unit (did you mean MiB?"),
        (["--memory", "1KiB"], "--memory: 1KiB are not a limit that an arena can have (from 1MiB"),
        (
            ["--spill", "1MiB"],
            "--spill: 1MiB are not a limit that a spill file can have (from 2MiB",
        ),
        (["--spill", "1GiB,"], "--spill: '1GiB,' has no path (write SIZE or SIZE,PATH)"),
        (["--persistent", "slab"], "--persistent: 'slab' is no allocator (one of zsmalloc, xv"),
        (["--ephemeral", "xvmalloc"], "--ephemeral: 'xvmalloc' is no allocator (one of zbud)"),
        (["--codec", "gzip"], "--codec: unknown codec 'gzip' (one of lzo"),
        (["--client", "a"], "--client: 'a' has no size (write NAME:SIZE)"),
        (["--client", "A:1GiB"], "--client: 'A' is not a client's name (use 1 to 31"),
        (["--client", "a:5000"], "--client: 5000 bytes are not whole pages"),
        (["--client", "a:1GiB", "--client", "a:2GiB"], "given twice with different sizes"),
        (["--config", "/nonexistent"], "--config: cannot read /nonexistent: No such file"),
        (["--state", "~no-such-user/x"], "--state: cannot use '~no-such-user/x': Could not"),
        (["--sockets", "a\0b"], "--sockets: cannot use 'a\\x00b': embedded null byte"),
    ],
)
def test_errors_name_option_and_remedy(options: list[str], says: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(STATE + options)
    assert says in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("options", [[], [*STATE, "--no-such"], [*STATE, "--mem", "1GiB"]])
def test_words_that_are_no_options_exit_with_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(options)
    assert stop.value.code == 2
    assert "usage: kztmemd" in capsys.readouterr().err


def test_help_shows_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    assert "Exit codes" in capsys.readouterr().out


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kztmemd.toml"
    file.write_text(
        'memory = "1GiB"\ncodec = "lz4"\ndedup = "client"\n[clients.a]\nswap = "1GiB"\n'
    )
    config = ["--config", str(file)]
    settings = parse([*STATE, *config, "--memory", "2GiB", "--client", "b:1GiB"]).settings
    assert settings.memory == 2 << 30
    assert settings.codec == "lz4"
    assert settings.dedup == "client"
    client = ClientSettings(swap=1 << 30)
    assert settings.clients == {"a": client, "b": client}
    settings = parse([*STATE, *config, "--dedup", "domain:x"]).settings
    assert settings.dedup == "domain:x"


def test_the_daemon_starts_without_what_only_the_api_needs() -> None:
    """Pages wait for what is imported here, and a start without pages is an outage."""
    heavy = "asyncio,pydantic,starlette,uvicorn,prometheus_client"
    program = (
        "import sys, kztmem.daemon, kztmem.service\n"
        f"print([m for m in {heavy!r}.split(',') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
