# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest kernel's tmem hooks and its module, with a store in the guest that misbehaves."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.kernel import Console, built_store, run

from kztlab.image import Image, ensure
from kztlab.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

# The kernel is built if the cache does not have it.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def image() -> Image:
    return ensure("debian-trixie-tmem", Places.default(), lambda _step, _seconds: None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that whoever QEMU runs as can reach."""
    folder = Path(tempfile.mkdtemp(prefix="kzt-kernel-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


def reports(console: Console, word: str) -> list[dict[str, Any]]:
    """What kzt-load has reported where it was able to."""
    found = [line.split(" ", 1) for line in console.of(word)]
    return [json.loads(report) | {"code": int(code)} for code, report in found]


def test_pages_go_and_come_right_and_what_must_not_is_refused(
    image: Image, store: Path, folder: Path
) -> None:
    script = """
        store
        anon
        say stores $(cat $F/succ_stores) loads $(cat $F/loads)
        rmmod kztmem 2>/dev/null; say unload $?
        { echo disk >/sys/power/state; } 2>/dev/null; say hibernate $?
        echo 1 >/sys/module/kztmem/parameters/put_wait
        head -c 67108864 /dev/urandom >/root/big; sync
        echo 3 >/proc/sys/vm/drop_caches  # what was written is not put, what was read is
        load cat /root/big >/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        before=$(pgpgin); load md5sum /root/big; say again $(($(pgpgin) - before))
        say gets $(cat $C/succ_gets) index $(cat $C/curr_pages)
        rm /root/big
        for wait in 1 2 3 4 5 6 7 8 9; do  # the index goes when nobody can be reading it
            [ "$(cat $C/curr_pages)" = 0 ] || sleep 0.5
        done
        say index $(cat $C/curr_pages)
        swapoff /dev/vdb; say swapoff $?
        kill $STORE; wait $STORE
        rmmod kztmem; say unload $?
    """
    console = run(image, store, script, folder)
    (anon,) = reports(console, "anon")
    assert (anon["ok"], anon["pages"]) == (True, 16384)
    stored, loaded = map(int, console.of("stores")[0].split(" loads "))
    assert min(stored, loaded) > 4000  # of 64 MiB in 48
    assert console.of("unload") == ["1", "0"]
    assert console.of("hibernate") != ["0"]
    # All of the file came back from the store, but for blocks that say where its data is.
    assert int(console.of("again")[0]) < 400
    gets, index = map(int, console.of("gets")[0].split(" index "))
    assert gets >= 16384
    # What was got is in memory again, and goes out once more for want of room there.
    assert (index > 2000, console.of("index")) == (True, ["0"])
    assert console.of("swapoff") == ["0"]


@pytest.mark.parametrize("fault", ["refuse", "twice", "late", "torn", "silent"])
def test_a_store_that_misbehaves_costs_no_page(
    image: Image, store: Path, folder: Path, fault: str
) -> None:
    script = f"""
        echo 2000 >/sys/module/kztmem/parameters/timeout
        store {fault}
        for writeback in 0 1; do
            echo $writeback >/sys/module/kztmem/parameters/writeback
            anon
        done
        files
        for name in failed_pers_puts stale_replies damaged timeouts lost_pages guard_swap; do
            say $name $(cat $K/$name)
        done
    """
    console = run(image, store, script, folder)
    assert [report["bad_pages"] for report in reports(console, "anon")] == [0, 0]
    assert [report["bad_pages"] for report in reports(console, "files")] == [0]
    evidence = {"refuse": "failed_pers_puts", "twice": "stale_replies", "torn": "damaged"}
    evidence |= {"silent": "timeouts"}
    if fault in evidence:
        assert int(console.of(evidence[fault])[0]) > 0
    assert console.of("lost_pages") + console.of("guard_swap") == ["0", "0"]


@pytest.mark.parametrize(("fault", "counter"), [("stale", "guard_swap"), ("lost", "lost_pages")])
def test_a_page_that_the_store_gets_wrong_is_an_error_and_no_wrong_byte(
    image: Image, store: Path, folder: Path, fault: str, counter: str
) -> None:
    script = f"""
        store {fault}
        load /kzt-load anon --size 64MiB --content text --passes 3 --rewrite 100 --json >/report
        say anon $?
        say counter $(cat $K/{counter}) failed $(cat $F/failed_loads)
        files 10
        say guard $(cat $K/guard_cache)
    """
    console = run(image, store, script, folder)
    assert console.of("anon") == ["135"]  # SIGBUS
    counted, failed = map(int, console.of("counter")[0].split(" failed "))
    assert counted == failed > 0
    assert [report["bad_pages"] for report in reports(console, "files")] == [0]
    assert "lost a swapped out page" in console.text


def test_the_store_killed_again_and_again_leaves_no_stale_file(
    image: Image, store: Path, folder: Path
) -> None:
    script = """
        swapoff /dev/vdb
        (while :; do store; sleep 2; kill -9 $STORE; wait $STORE; done) 2>/dev/null &
        files 30
        say sessions $(cat $K/sessions)
    """
    console = run(image, store, script, folder)
    (files,) = reports(console, "files")
    assert files["bad_pages"] == 0
    assert int(console.of("sessions")[0]) > 4


def test_without_invalidation_stale_pages_are_found(
    image: Image, store: Path, folder: Path
) -> None:
    """That the file load can fail at all."""
    script = """
        store
        echo 1 >$C/skip_invalidate
        files 20
    """
    (files,) = reports(run(image, store, script, folder), "files")
    assert files["bad_pages"] > 0
