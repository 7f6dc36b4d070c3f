# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest kernel's tmem hooks and its module, with a store in the guest that misbehaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from errno import EPERM
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.kernel import Console, blocks_of, built, make_disk, run

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
    return built("store", tmp_path_factory.mktemp("store"))


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
        for state in disk freeze; do say sleep $(echo $state 2>&1 >/sys/power/state); done
        echo 1 >/sys/module/kztmem/parameters/put_wait
        head -c 67108864 /dev/urandom >/root/big; sync
        echo 3 >/proc/sys/vm/drop_caches  # what was written is not put, what was read is
        load cat /root/big >/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        before=$(pgpgin); load md5sum /root/big; say again $(($(pgpgin) - before))
        say gets $(cat $C/succ_gets) index $(cat $C/curr_pages)
        rm /root/big
        until_none $C/curr_pages  # it goes when nobody can be reading it
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
    assert [said.rpartition(": ")[2] for said in console.of("sleep")] == [os.strerror(EPERM)] * 2
    assert "this system can't sleep while it uses the store" in console.text
    # All of the file came back from the store, but for blocks that say where its data is.
    assert int(console.of("again")[0]) < 400
    gets, index = map(int, console.of("gets")[0].split(" index "))
    assert gets >= 16384
    # What was got is in memory again, and goes out once more for want of room there.
    assert (index > 2000, console.of("index")) == (True, ["0"])
    assert console.of("swapoff") == ["0"]


def test_clean_pages_are_admitted_the_second_time_or_never(
    image: Image, store: Path, folder: Path
) -> None:
    script = """
        swapoff /dev/vdb; rmmod kztmem; insmod /kztmem.ko admit=2 put_wait=1
        A=/sys/module/kztmem/parameters/admit
        { echo 3 >$A; } 2>/dev/null; say wrong $? $(cat $A)
        store
        forget() { sync; echo 1 >/proc/sys/vm/drop_caches; }
        count() { cat $C/puts $C/failed_puts $C/succ_gets $K/rejected_puts; }
        read_again() {
            before=$(count)
            cat /root/big >/dev/null; forget
            say $1 $(count) $before
        }
        head -c 16777216 /dev/urandom >/root/big; forget
        for time in once twice thrice; do read_again $time; done
        echo 0 >$A
        read_again never
        say index $(cat $C/curr_pages)
        kill $STORE; wait $STORE; rmmod kztmem; say unload $?
    """
    console = run(image, store, script, folder)

    def since(when: str) -> dict[str, int]:
        *now, puts, failed, hits, rejected = map(int, console.of(when)[0].split())
        names = ("puts", "failed", "hits", "rejected")
        before = (puts, failed, hits, rejected)
        return {n: a - b for n, a, b in zip(names, now, before, strict=True)}

    pages = 4096
    assert console.of("wrong") == ["1 2"]
    once, twice, thrice, never = map(since, ("once", "twice", "thrice", "never"))
    assert min(once["rejected"], twice["puts"], thrice["hits"]) > 0.9 * pages
    # One or the other may be taken for a page that had gone before.
    assert once["puts"] + once["hits"] + twice["hits"] < pages // 10
    assert never["hits"] > 0.9 * pages
    # Nobody is even asked.
    assert (never["puts"], never["failed"], never["rejected"]) == (0, 0, 0)
    assert console.of("index") == ["0"]
    assert console.of("unload") == ["0"]


def test_swap_areas_come_and_go_with_pages_in_the_store(
    image: Image, store: Path, folder: Path
) -> None:
    """Three at a time, each of a lower priority than the one before: memory, a file, a disk."""
    script = """
        wrote() { awk '{print $7}' /sys/block/vdb/stat; }
        swapoff /dev/vdb
        rmmod kztmem; insmod /kztmem.ko slots=16
        for time in $(seq 20); do swapon /dev/vdb; swapoff /dev/vdb; done  # with no store
        rmmod kztmem; say unload $?; insmod /kztmem.ko
        insmod /zram.ko
        echo 16M >/sys/block/zram0/disksize
        head -c 16777216 /dev/zero >/root/swapfile
        mkswap /dev/zram0 >/dev/null; mkswap /root/swapfile >/dev/null
        for area in /dev/zram0 /root/swapfile /dev/vdb; do swapon $area; done
        store
        sync; before=$(wrote)
        anon 96 3 & LOAD=$!
        until_more 11000 $F/curr_pages
        echo 1 >/cg/load/cgroup.freeze
        while read name kind size used rest; do say area $name $used; done </proc/swaps
        rmmod kztmem 2>/dev/null; say unload $?
        swapoff /dev/zram0; say swapoff $?
        swapoff /root/swapfile; say swapoff $?
        read zram rest </sys/block/zram0/mm_stat
        say device $(($(wrote) - before)) zram $zram
        echo max >/cg/load/memory.max
        swapoff /dev/vdb; say swapoff $?
        say left $(cat $F/curr_pages)
        echo 0 >/cg/load/cgroup.freeze
        wait $LOAD
        kill $STORE; wait $STORE
        rmmod kztmem; say unload $?
        insmod /kztmem.ko
        echo 48M >/cg/load/memory.max
        swapon /dev/vdb
        store "" 1000
        before=$(wrote)
        anon
        say full $(($(wrote) - before)) refused $(cat $K/failed_pers_puts)
        kill $STORE; wait $STORE
        swapoff /dev/vdb
        echo 1 >/sys/block/zram0/reset; echo 64M >/sys/block/zram0/disksize
        mkswap /dev/zram0 >/dev/null; swapon /dev/zram0
        store
        anon
    """
    console = run(image, store, script, folder)
    used = {name: int(kib) // 4 for name, kib in map(str.split, console.of("area")[1:])}
    assert used["/dev/zram0"] > 3500
    assert used["/root/swapfile"] > 3500
    assert used["/dev/vdb"] > 2000
    # None of it went further than the store; memory has what mkswap wrote.
    assert console.of("device") == ["0 zram 4096"]
    assert console.of("swapoff") == ["0", "0", "0"]
    assert console.of("left") == ["0"]
    assert console.of("unload") == ["0", "1", "0"]
    # What the store has no room for is on the disk.
    sectors, refused = map(int, console.of("full")[0].split(" refused "))
    assert sectors > 8 * 2000
    assert refused > 0
    *loads, memory = reports(console, "anon")
    assert [report["bad_pages"] for report in (*loads, memory)] == [0, 0, 0]
    # A device as fast as memory is read at once; the store's pages must not be read so, and again.
    assert memory["pswpin"] < 1.5 * memory["pages"]


def test_what_changed_beneath_an_unmounted_file_system_is_read(
    image: Image, store: Path, folder: Path
) -> None:
    """The index of what the store has is gone with the mount."""
    content = bytearray(random.Random(1).randbytes(8 << 20))
    (folder / "content").mkdir()
    (folder / "content/data").write_bytes(content)
    make_disk(folder / "disk", folder / "content")
    shutil.rmtree(folder / "content")
    before = hashlib.md5(content, usedforsecurity=False).hexdigest()
    blocks = [block for block in blocks_of(folder / "disk", "/data") if block][16::64]
    page = random.Random(2).randbytes(4096)
    (folder / "page").write_bytes(page)
    # Blocks are in the order of the file, but for the one that says where they are.
    script = f"""
        store
        echo 1 >/sys/module/kztmem/parameters/put_wait
        sum() {{ say sum $(load md5sum $1); }}
        forget() {{ sync; echo 1 >/proc/sys/vm/drop_caches; }}
        sum /root/data; forget
        mount -o remount,ro /root; sum /root/data; forget
        mount -o remount,rw /root; sum /root/data; forget
        say index $(cat $C/curr_pages) gets $(cat $C/succ_gets)
        umount /root
        until_none $C/curr_pages; say index $(cat $C/curr_pages)
        for block in {" ".join(map(str, blocks))}; do
            dd if=/page of=/dev/vda bs=4096 seek=$block conv=notrunc 2>/dev/null
        done
        mount -t ext4 /dev/vda /root
        say sum $(md5sum /root/data); forget
        say sum $(md5sum /root/data)
        gets=$(cat $C/succ_gets); forget
        say sum $(md5sum /root/data); say gets $(($(cat $C/succ_gets) - gets))
    """
    console = run(image, store, script, folder, files=(folder / "page",))
    index, gets = map(int, console.of("index")[0].split(" gets "))
    assert min(index, gets / 2) > 2000
    assert console.of("index")[1] == "0"
    sums = [said.split()[0] for said in console.of("sum")]
    assert sums[:3] == [before] * 3
    assert len(set(sums[3:])) == 1
    assert sums[3] != before
    assert int(console.of("gets")[0]) > 2000


def test_blocks_smaller_than_a_page_stay_out(image: Image, store: Path, folder: Path) -> None:
    """A page could be newer in parts than what has been put of it."""
    (folder / "content").mkdir()
    (folder / "content/data").write_bytes(bytes(range(256)) * 16384)
    make_disk(folder / "disk", folder / "content", block=1024)
    shutil.rmtree(folder / "content")
    script = """
        store
        cat /root/data >/dev/null; echo 1 >/proc/sys/vm/drop_caches
        before=$(pgpgin); cat /root/data >/dev/null; say again $(($(pgpgin) - before))
        say puts $(cat $C/puts) $(cat $C/failed_puts)
    """
    console = run(image, store, script, folder)
    assert int(console.of("again")[0]) >= 4096
    assert console.of("puts") == ["0 0"]


def test_the_index_of_lonely_pages_has_a_bound(image: Image, store: Path, folder: Path) -> None:
    """Each takes as much memory as 64 that follow each other."""
    (folder / "content").mkdir()
    with (folder / "content/lonely").open("wb") as file:
        for place in range(0, 2 << 30, 64 * 4096):
            file.seek(place)
            file.write(bytes(range(1, 129)) * 32)
    make_disk(folder / "disk", folder / "content")
    shutil.rmtree(folder / "content")
    script = """
        echo 1 >/sys/module/kztmem/parameters/put_wait
        store
        read name total unit </proc/meminfo; say memory $((total / 4))
        cat /root/lonely >/dev/null; echo 1 >/proc/sys/vm/drop_caches
        say index $(cat $C/curr_pages) failed $(cat $C/failed_puts)
        head -c 33554432 /dev/urandom >/root/dense; sync
        for time in 1 2; do echo 1 >/proc/sys/vm/drop_caches; cat /root/dense >/dev/null; done
        echo 1 >/proc/sys/vm/drop_caches; sleep 1; say dense $(cat $C/curr_pages)
    """
    console = run(image, store, script, folder)
    (memory,) = map(int, console.of("memory"))
    index, failed = map(int, console.of("index")[0].split(" failed "))
    assert index == pytest.approx(memory / 16, rel=0.02)
    assert failed == pytest.approx(8192 - index, rel=0.02)
    # Others than the file itself give way.
    assert int(console.of("dense")[0]) == 8192


def test_a_pool_that_was_made_unseen_is_made_anew(image: Image, store: Path, folder: Path) -> None:
    """Otherwise the store would keep one more each time, until it gives no more of them."""
    script = """
        echo 500 >/sys/module/kztmem/parameters/timeout
        store forgetful
        until_more 1 $K/sessions
        anon
        kill $STORE; wait $STORE
        store forgetful; sleep 1
    """
    console = run(image, store, script, folder)
    assert console.of("fresh")[:3] == ["1", "1", "0"]
    (anon,) = reports(console, "anon")
    assert (anon["bad_pages"], anon["pswpout"] > 4000) == (0, True)


def test_huge_pages_go_out_whole_and_memory_may_be_unplugged(
    image: Image, store: Path, folder: Path
) -> None:
    script = """
        event() { sed -n "s/^$1 //p" /proc/vmstat; }
        echo madvise >/sys/kernel/mm/transparent_hugepage/enabled  # off in small systems
        swapoff /dev/vdb
        echo 0 >/sys/block/vdb/queue/rotational  # where slots come in clusters
        swapon /dev/vdb
        store
        stored=$(cat $F/succ_stores) split=$(event thp_split_page) out=$(event thp_swpout)
        say huge $(load /huge 32 2)
        say whole $(($(event thp_swpout) - out))
        say stored $(($(cat $F/succ_stores) - stored)) split $(($(event thp_split_page) - split))
        anon 64 4 & LOAD=$!
        for memory in /sys/devices/system/memory/memory*; do
            [ "$(cat $memory/valid_zones)" != Movable ] || break  # the last one has holes
        done
        until_more $(($(cat $F/succ_stores) + 500)) $F/succ_stores
        for try in 1 2 3 4 5; do
            echo offline >$memory/state && break
            sleep 1
        done
        say offline $(cat $memory/state)
        until_more $(($(cat $F/succ_stores) + 500)) $F/succ_stores
        echo online_movable >$memory/state; say online $(cat $memory/state)
        wait $LOAD
    """
    files = (built("huge", store.parent),)
    console = run(image, store, script, folder, memory=512, cmdline="movablecore=256M", files=files)
    kib, bad = map(int, console.of("huge")[0].split())
    assert (kib, bad) == (2 * 32 << 10, 0)
    stored, split = map(int, console.of("stored")[0].split(" split "))
    assert (stored >= 2 * 8192 - 1024, split) == (True, 0)
    assert 512 * int(console.of("whole")[0]) == stored
    assert console.of("offline") + console.of("online") == ["offline", "online"]
    (anon,) = reports(console, "anon")
    assert (anon["ok"], anon["bad_pages"]) == (True, 0)


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
    evidence |= {"silent": "timeouts", "late": "timeouts"}
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
        until [ "$(cat $K/sessions)" -gt 4 ]; do files 30; done  # once, on a fast host
    """
    loads = reports(run(image, store, script, folder), "files")
    assert loads
    assert [load["bad_pages"] for load in loads] == [0] * len(loads)


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
