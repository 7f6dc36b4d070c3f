# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way to get a cluster.yaml wrong, with the exact line a user sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kztlab.errors import BadInput
from kztlab.spec import SpecError, load
from kztlab.spec.source import MAX_ALIASES, MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Problems = Callable[[str | bytes], list[str]]

GOOD = """\
lab: q
guests:
  web: {count: 2}
workloads:
  - {name: fill, on: [web], anon: {size: 300MiB}}
"""


def test_a_good_file_has_no_problems(problems: Problems) -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        # --- unknown keys
        ("lab: q\nguest: {}\nguests: {a: {}}", "2:1: guest: unknown key (did you mean 'guests'?)"),
        (
            "lab: q\nguests:\n  web: {memry: 192MiB}",
            "3:9: guests.web.memry: unknown key (did you mean 'memory'?)",
        ),
        (
            "lab: q\nguests: {a: {}}\ncollect: {often: yes}",
            "3:11: collect.often: unknown key (known: interval)",
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads: [{name: w, on: [a], anon: {size: 1MiB, sized: 1}}]"
            ),
            "3:51: workloads[0].anon.sized: unknown key (did you mean 'size'?)",
        ),
        # --- duplicate keys
        ("lab: q\nguests: {a: {}}\nlab: p", "3:1: lab: duplicate key (the first one is in line 1)"),
        (
            "lab: q\nguests:\n  a: {}\n  b: {}\n  a: {}",
            "5:3: guests.a: duplicate key (the first one is in line 3)",
        ),
        # --- wrong types
        ("lab: 5\nguests: {a: {}}", "1:6: lab: must be text, not 5 (put it in quotes)"),
        ("lab: q\nguests: [a]", "2:9: guests: must be a mapping, not a list"),
        (
            "lab: q\nguests: {a: }",
            "2:12: guests.a: must be a mapping, not empty (write {} for all defaults)",
        ),
        (
            "lab: q\nguests: {a: {vcpus: two}}",
            "2:21: guests.a.vcpus: must be a whole number, not 'two'",
        ),
        (
            "lab: q\nguests: {a: {vcpus: 1.0}}",
            "2:21: guests.a.vcpus: must be a whole number, not 1.0",
        ),
        (
            "lab: q\nguests: {a: {count: true}}",
            "2:21: guests.a.count: must be a whole number, not true",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {overcommit: on}",
            "3:21: store.overcommit: must be true or false, not 'on'",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {ratio: high}",
            "3:16: store.ratio: must be a number, not 'high'",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads: {name: w}",
            "3:12: workloads: must be a list, not a mapping",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads: [{name: w, on: a, command: x}]",
            "3:27: workloads[0].on: must be a list, not 'a' (write [a])",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads: [{name: w, on: [], command: x}]",
            "3:27: workloads[0].on: is empty (at least one is needed)",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads: [{name: w, on: [a], command: 7}]",
            "3:41: workloads[0].command: must be text, not 7 (put it in quotes)",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads: [{name: w, on: [a], command: ''}]",
            "3:41: workloads[0].command: is empty (at least one is needed)",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {socket: store.sock}",
            "3:17: store.socket: 'store.sock' is not an absolute path (it starts with a slash)",
        ),
        # --- what must be there
        ("guests: {a: {}}", "1:1: lab: is missing (this key has no default)"),
        ("lab: q", "1:1: guests: is missing (this key has no default)"),
        (
            "lab: q\nguests: {a: {}}\nworkloads:\n  - {name: w, on: [a], anon: {}}",
            "4:24: workloads[0].anon.size: is missing (this key has no default)",
        ),
        # --- sizes, durations, numbers
        (
            "lab: q\nguests: {a: {memory: 512M}}",
            "2:22: guests.a.memory: '512M' is not a size (sizes are binary: write 512MiB)",
        ),
        (
            "lab: q\nguests: {a: {memory: 192}}",
            "2:22: guests.a.memory: 192B is too small (at least 64MiB)",
        ),
        (
            "lab: q\nguests: {a: {swap: 32TiB}}",
            "2:20: guests.a.swap: 32TiB is too large (at most 16TiB)",
        ),
        (
            "lab: q\nguests: {a: {swap: 10000001}}",
            "2:20: guests.a.swap: 10000001B is not a multiple of 4KiB (round it up to 9768KiB)",
        ),
        (
            "lab: q\nguests: {a: {memory: 2.5}}",
            "2:22: guests.a.memory: must be a whole number, not 2.5",
        ),
        (
            "lab: q\nguests: {a: {boot_timeout: 5m}}",
            "2:28: guests.a.boot_timeout: '5m' is not a duration (write 5min)",
        ),
        (
            "lab: q\nguests: {a: {}}\ncollect: {interval: 1}",
            "3:21: collect.interval: 1 has no unit (write 1s, 1min or 1ms)",
        ),
        (
            "lab: q\nguests: {a: {}}\ncollect: {interval: 1ms}",
            "3:21: collect.interval: 1ms is out of range (from 100ms to 1h)",
        ),
        (
            "lab: q\nguests: {a: {count: 0}}",
            "2:21: guests.a.count: 0 is too small (at least 1)",
        ),
        (
            "lab: q\nguests: {a: {count: 65}}",
            "2:21: guests.a.count: 65 is too large (at most 64)",
        ),
        # --- words of a kind
        (
            "lab: q\nguests: {a: {frontend: ndb}}",
            "2:24: guests.a.frontend: unknown frontend 'ndb' (did you mean 'nbd'?)",
        ),
        (
            "lab: q\nguests: {a: {frontend: floppy}}",
            (
                "2:24: guests.a.frontend: unknown frontend 'floppy'"
                " (known: auto, nbd, relay, vhost-user-blk, tmem, disk, zram, zswap, none)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads: [{name: w, on: [a], anon: {size: 1MiB, content: mixd}}]"
            ),
            "3:60: workloads[0].anon.content: unknown content 'mixd' (did you mean 'mixed'?)",
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads: [{name: w, on: [a], anon: {size: 1MiB, access: randm}}]"
            ),
            "3:59: workloads[0].anon.access: unknown access 'randm' (did you mean 'random'?)",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {codec: gzip}",
            (
                "3:16: store.codec: 'gzip' is not a codec"
                " (lzo, lz4, none, zstd or zstd:LEVEL with a level from -7 to 19)"
            ),
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {codec: 'zstd:20'}",
            (
                "3:16: store.codec: 'zstd:20' is not a codec"
                " (lzo, lz4, none, zstd or zstd:LEVEL with a level from -7 to 19)"
            ),
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {dedup: 'domain:'}",
            (
                "3:16: store.dedup: 'domain:' is not a way to deduplicate (off, client or "
                "domain:NAME with a name of up to 32 printable characters, no spaces)"
            ),
        ),
        (
            "lab: q\nguests: {a: {cap: 1}}",
            "2:19: guests.a.cap: 1B is too small (at least 1MiB)",
        ),
        (
            "lab: q\nguests: {a: {cap: 2MiB, reservation: 3MiB}}",
            (
                "2:38: guests.a.reservation: 3MiB is more than the guest's cap"
                " (at most its cap of 2MiB)"
            ),
        ),
        # --- frontends
        (
            "lab: q\nguests: {a: {frontend: tmen}}",
            "2:24: guests.a.frontend: unknown frontend 'tmen' (did you mean 'tmem'?)",
        ),
        (
            "lab: q\nguests: {a: {cleancache: false}}",
            (
                "2:26: guests.a.cleancache: frontend 'nbd' has no cleancache"
                " (use frontend tmem, or leave it out)"
            ),
        ),
        (
            "lab: q\nguests: {a: {frontend: nbd, tmem: {put_wait: true}}}",
            "2:35: guests.a.tmem: frontend 'nbd' has no tmem (use frontend tmem, or leave it out)",
        ),
        (
            "lab: q\nguests: {a: {frontend: tmem, tmem: {timeout: 10}}}",
            "2:46: guests.a.tmem.timeout: 10 has no unit (write 10s, 10min or 10ms)",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {spill: 1MiB}",
            "3:16: store.spill: 1MiB is too small (at least 2MiB)",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {persistent: zmalloc}",
            "3:21: store.persistent: unknown allocator 'zmalloc' (did you mean 'zsmalloc'?)",
        ),
        (
            "lab: q\nguests: {a: {}}\nstore: {ephemeral: zsmalloc}",
            (
                "3:20: store.ephemeral: unknown allocator of what may vanish 'zsmalloc'"
                " (known: zbud)"
            ),
        ),
        # --- names
        (
            "lab: Q\nguests: {a: {}}",
            (
                "1:6: lab: 'Q' is not a name"
                " (a small letter, then up to 30 small letters, digits or hyphens)"
            ),
        ),
        (
            "lab: q\nguests:\n  web_1: {}",
            (
                "3:3: guests.web_1: 'web_1' is not a name"
                " (a small letter, then up to 30 small letters, digits or hyphens)"
            ),
        ),
        (
            f"lab: {'q' * 32}\nguests: {{a: {{}}}}",
            (
                f"1:6: lab: '{'q' * 32}' is not a name"
                " (a small letter, then up to 30 small letters, digits or hyphens)"
            ),
        ),
        (
            "lab: 'q\\n'\nguests: {a: {}}",
            (
                "1:6: lab: 'q\\\\n' is not a name"
                " (a small letter, then up to 30 small letters, digits or hyphens)"
            ),
        ),
        (
            "lab: q\nguests:\n  web: {count: 2}\n  web-1: {}",
            "4:3: guests.web-1: 'web-1' is also a guest of 'web' (rename one of the two)",
        ),
        (
            f"lab: q\nguests:\n  {'w' * 30}: {{count: 2}}",
            (
                f"3:3: guests.{'w' * 30}: '{'w' * 30}-1' is longer than 31 characters"
                " (shorten the name)"
            ),
        ),
        (
            "lab: q\nguests: {a: {count: 40}, b: {count: 40}}",
            "2:1: guests: 80 guests are too many (at most 64 in all)",
        ),
        # --- workloads
        (
            "lab: q\nguests: {web: {count: 2}}\nworkloads: [{name: w, on: [wbe], command: x}]",
            "3:28: workloads[0].on[0]: unknown guest 'wbe' (did you mean 'web'?)",
        ),
        (
            "lab: q\nguests: {web: {count: 2}}\nworkloads: [{name: w, on: [web-3], command: x}]",
            "3:28: workloads[0].on[0]: unknown guest 'web-3' (did you mean 'web-2'?)",
        ),
        (
            "lab: q\nguests: {a: {}}\nworkloads:\n  - {name: w, on: [a]}",
            (
                "4:5: workloads[0]: has nothing to do"
                " (a workload has exactly one of anon, files, command)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads:\n  - {name: w, on: [a], command: x, anon: {size: 1MiB}}"
            ),
            (
                "4:5: workloads[0]: has 'anon' and 'command'"
                " (a workload has exactly one of anon, files, command)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads:\n  - {name: w, on: [a], files: {size: 1MiB, duration: 10min}}"
            ),
            (
                "4:54: workloads[0].files.duration: 10min and more do not fit in 10min"
                " (raise workloads[0].timeout, which is for creating the files, too)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {}}\n"
                "workloads:\n  - {name: w, on: [a], files: {size: 1MiB, duration: 1500ms}}"
            ),
            "4:54: workloads[0].files.duration: 1500ms is no number of whole seconds",
        ),
        (
            (
                "lab: q\nguests: {a: {}}\nworkloads:\n"
                "  - {name: w, on: [a], command: x}\n  - {name: w, on: [a], command: y}"
            ),
            (
                "5:12: workloads[1].name: 'w' is already the name of workloads[0]"
                " (choose another name)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {swap: 256MiB}}\n"
                "workloads: [{name: w, on: [a], anon: {size: 417MiB}}]"
            ),
            (
                "3:45: workloads[0].anon.size: 417MiB do not fit guest 'a': it has 416MiB for"
                " workloads (RAM and swap: reduce the size or enlarge guests.a.swap)"
            ),
        ),
        (
            (
                "lab: q\nguests: {a: {frontend: none}}\n"
                "workloads: [{name: w, on: [a], anon: {size: 300MiB}}]"
            ),
            (
                "3:45: workloads[0].anon.size: 300MiB do not fit guest 'a': it has 160MiB for"
                " workloads (reduce the size or give guests.a a frontend that swaps)"
            ),
        ),
        (
            "lab: q\nguests: {a: {workload_memory_max: 200MiB}}",
            (
                "2:35: guests.a.workload_memory_max: 200MiB is more than the guest's 192MiB"
                " (memory.max must be below the guest's memory)"
            ),
        ),
    ],
)
def test_a_wrong_value_is_one_problem(problems: Problems, contents: str, problem: str) -> None:
    assert problems(contents) == [f"cluster.yaml:{problem}"]


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ("", "1:1: the file is empty (`kztlab init` writes an example)"),
        ("# only words\n", "1:1: the file is empty (`kztlab init` writes an example)"),
        ("- lab\n", "1:1: must be a mapping, not a list"),
        ("lab\n", "1:1: must be a mapping, not 'lab'"),
        ("lab: q\nguests:\n\ta: {}\n", "3:1: a tab cannot indent (use spaces)"),
        (b"lab: q\n# caf\xe9\n", "2:6: byte 0xe9 is not UTF-8 (save it as UTF-8)"),
        (b"\xff\xfel\x00a\x00", "1:1: byte 0xff is not UTF-8 (save it as UTF-8)"),
        ("lab: q\x07\n", "1:7: character U+0007 is not allowed in YAML (remove it)"),
        ("lab: q\n---\nlab: p\n", "2:1: a second document starts here (keep one)"),
        (
            "lab: {a\n",
            (
                "2:1: not YAML: expected ',' or '}', but got '<stream end>'"
                " (while parsing a flow mapping)"
            ),
        ),
        (
            "lab: !!python/name:os.system q\n",
            (
                "1:6: tags such as"
                " 'tag:yaml.org,2002:python/name:os.system' are not used here (remove it)"
            ),
        ),
        ("[" * 50, "1:21: nested too deeply (at most 20 levels)"),
        (
            "a: &a [*a]\n",
            "1:4: an alias contains itself, or nesting is too deep (write it out plainly)",
        ),
        (
            "a: &a [1]\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]\n",
            f"2:{5 + 4 * MAX_ALIASES}: too many aliases (at most {MAX_ALIASES} in a file)",
        ),
        ("#" * (MAX_BYTES + 1), "1:1: the file is larger than 256KiB (is this a cluster.yaml?)"),
    ],
)
def test_what_is_no_readable_yaml(problems: Problems, contents: str | bytes, problem: str) -> None:
    assert problems(contents) == [f"cluster.yaml:{problem}"]


def test_aliases_that_multiply_are_refused(problems: Problems) -> None:
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    (problem,) = problems("\n".join(levels))
    assert problem.endswith("more than 20000 values, aliases unfolded (write it out plainly)")


def test_a_byte_order_mark_is_no_problem(problems: Problems) -> None:
    assert problems(b"\xef\xbb\xbf" + GOOD.encode()) == []


def test_words_that_older_yaml_takes_for_booleans_are_words(problems: Problems) -> None:
    """`on` is a key of workloads, `no` and `yes` are names."""
    text = "lab: on\nguests: {no: {}, yes: {}}\nworkloads: [{name: off, on: [no], command: y}]"
    assert problems(text) == []


def test_merge_keys_and_odd_keys_are_refused(problems: Problems) -> None:
    assert problems("lab: q\nguests:\n  a: &a {}\n  b: {<<: *a}\n") == [
        "cluster.yaml:4:7: guests.b.<<: merge keys are not supported (repeat the keys)"
    ]
    assert problems("lab: q\nguests:\n  a: {}\n  ? [b]\n  : {}\n") == [
        "cluster.yaml:4:5: guests: a key must be a word (is there a stray '?' or '{'?)"
    ]


def test_aliases_repeat_values(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("lab: q\nguests:\n  a: &a {memory: 256MiB}\n  b: *a\n", encoding="utf-8")
    guests = load(path).guests
    assert guests["a"] == guests["b"]


def test_everything_wrong_is_said_at_once_in_file_order(problems: Problems) -> None:
    """Also what concerns several parts, as far as those parts are right by themselves."""
    assert problems(
        "lab: Q\n"
        "store: {codec: zip}\n"
        "guests:\n"
        "  web: {count: 2, frontend: ndb}\n"
        "  db: {frontend: none}\n"
        "workloads:\n"
        "  - {name: a, on: [web-2, dbb], anon: {size: 300MiB}}\n"
        "  - {name: a, on: [db], anon: {size: 300MiB}, stagger: 5}\n"
        "  - {name: b, on: [db], anon: {size: 300MiB}}\n"
    ) == [
        (
            "cluster.yaml:1:6: lab: 'Q' is not a name"
            " (a small letter, then up to 30 small letters, digits or hyphens)"
        ),
        (
            "cluster.yaml:2:16: store.codec: 'zip' is not a codec"
            " (lzo, lz4, none, zstd or zstd:LEVEL with a level from -7 to 19)"
        ),
        "cluster.yaml:4:29: guests.web.frontend: unknown frontend 'ndb' (did you mean 'nbd'?)",
        "cluster.yaml:7:27: workloads[0].on[1]: unknown guest 'dbb' (did you mean 'db'?)",
        "cluster.yaml:8:56: workloads[1].stagger: 5 has no unit (write 5s, 5min or 5ms)",
        (
            "cluster.yaml:9:38: workloads[2].anon.size: 300MiB do not fit guest 'db': it has 160MiB"
            " for workloads (reduce the size or give guests.db a frontend that swaps)"
        ),
    ]


def test_a_missing_file_is_bad_input_with_a_suggestion(tmp_path: Path) -> None:
    missing = tmp_path / "clutser.yaml"
    with pytest.raises(SpecError) as caught:
        load(missing)
    assert str(caught.value) == f"{missing}:1:1: no such file (`kztlab init` writes an example)"
    (tmp_path / "cluster.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(BadInput, match=r"did you mean 'cluster\.yaml'") as known:
        load(missing)
    assert known.value.exit_code == 2


def test_a_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}:1:1: cannot be read: Is a directory"
