# SPDX-License-Identifier: GPL-2.0-or-later
"""`kztmemd bench`: what this host makes of given pages, with no daemon and no guest."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kztmem import _core
from kztmem.errors import BadInput, HostUnable
from kztmem.settings import PAGE_SIZE, PERSISTENT, check_allocator, check_codec
from kztmem.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


_ARENAS: Final = Path("/dev/shm")  # noqa: S108 -- the tmpfs that stores have their arenas in

_EPILOG = """\
engines:
  raw    the codec's library alone, called on every page
  store  this store, without sockets: an arena in /dev/shm and a client for each thread
  zram   the host's, through its block device: its times have a system call and the block layer in
         them; only for root, and with the codecs that the kernel has

All have the same pages in the same order, and take turns. Cold is a first round, in which memory is
touched for the first time; warm a second one, over the pages of the first. Gets come in random
order; what they return is compared once, untimed. Times are µs a page as each thread sees it: the
median of the repetitions' means, without the time that a thread waited for a processor, and of
their 99th percentiles of single pages. Memory is what the engine holds after the round, in bytes
for each page; lost is what lies unused between the data.

--json prints a row a line. Its data_bytes has the fragmentation in it; same_filled and duplicates
count pages of the files; what an engine does not have is null.

examples:
  kztmemd bench store /usr/lib
  kztmemd bench store --codec lzo,lz4,zstd:1 --threads 1,2 memory.dump
"""

_COLUMNS: Final = (
    *("engine", "codec", "alloc", "threads", "memory", "put µs", "p99", "× raw"),
    *("get µs", "p99", "× raw", "data", "lost", "meta"),
)


def main(argv: Sequence[str]) -> int:
    """Measure and print; the exit code. Raises `DaemonError`."""
    args = _parser().parse_args(argv)
    codecs = [check_codec(codec, key="--codec") for codec in _words(args.codec)]
    words = _words(args.alloc)
    allocators = [check_allocator(word, PERSISTENT, key="--alloc") for word in words]
    threads = [_number(word, key="--threads") for word in _words(args.threads)]
    with _progress() as progress:
        report = _measure(
            _files(args.files),
            codecs=codecs,
            allocators=allocators,
            threads=threads,
            repetitions=_number(args.repetitions, key="--repetitions"),
            limit=-(-parse_size(args.limit, key="--limit") // PAGE_SIZE),
            progress=progress,
        )
    if args.json:
        for row in report["rows"]:
            print(json.dumps(_json(row)))
    else:
        _print(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kztmemd bench store",
        description="Times the store beside the bare codec and the host's zram, on given pages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="files, memory dumps, or folders of files: their pages",
    )
    add("--codec", default="lzo", metavar="LIST", help="lzo (the default), lz4, zstd:LEVEL, none")
    add(
        "--alloc",
        default=PERSISTENT[0],
        metavar="LIST",
        help=f"{', '.join(PERSISTENT)} (default {PERSISTENT[0]})",
    )
    add("--threads", default="1", metavar="LIST", help="threads at once (default 1)")
    add("--repetitions", default="5", metavar="N", help="(default 5)")
    add(
        "--limit",
        default="512MiB",
        metavar="SIZE",
        help="of more pages than this, take some, evenly spread (default 512MiB)",
    )
    add("--json", action="store_true", help="print a JSON object for each row")
    return parser


def _words(text: str) -> list[str]:
    """The parts of a list without its repetitions, in order."""
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def _number(text: str, *, key: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 256):
        raise BadInput(f"{text!r} is not a number from 1 to 256", key=key)
    return int(text)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The regular files that were named, and those below the folders that were, sorted."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (
                Path(folder, name)
                for folder, folders, names in os.walk(path)
                if folders.sort() is None
                for name in sorted(names)
            )
            files += (file for file in below if file.is_file() and not file.is_symlink())
        elif path.is_file():
            files.append(path)
        else:
            what = "is no regular file" if path.exists() else "does not exist"
            raise BadInput(f"{str(path)!r} {what}", key="FILE")
    return files


def _measure(
    files: Sequence[Path],
    *,
    codecs: Sequence[str],
    allocators: Sequence[str],
    threads: Sequence[int],
    repetitions: int,
    limit: int,
    progress: Callable[[str, int, int], None],
) -> _core.Bench:
    try:
        return _core.bench(
            files,
            codecs=codecs,
            allocators=allocators,
            threads=threads,
            repetitions=repetitions,
            limit=limit,
            folder=_ARENAS,
            progress=progress,
        )
    except OSError as error:
        raise BadInput(f"cannot read {error.filename}: {error.strerror}", key="FILE") from error
    except ValueError as error:
        raise BadInput(str(error), key="FILE") from error
    except _core.ArenaSpaceError as error:
        raise HostUnable(str(error), hint="a smaller --limit needs less") from error
    except _core.StoreError as error:
        raise HostUnable(str(error)) from error


def _json(row: _core.BenchRow) -> dict[str, object]:
    lost = row["fragmentation_bytes"] or 0
    data: dict[str, object] = {**row, "data_bytes": row["data_bytes"] + lost}
    del data["fragmentation_bytes"]
    return data


def _print(report: _core.Bench) -> None:
    pages, available = report["pages"], report["available"]
    spread = f", evenly spread over {available}" if pages < available else ""
    first = report["rows"][0]
    print(f"{pages} pages of {PAGE_SIZE} bytes{spread}: {format_size(pages * PAGE_SIZE)}")
    shares = [("same-filled", first["same_filled"]), ("duplicates", first["duplicates"])]
    shares += [
        (f"incompressible by {codec}", count) for codec, count in report["incompressible"].items()
    ]
    print(", ".join(f"{name} {100 * count / pages:.1f} %" for name, count in shares))
    print()
    raw = {(row["codec"], row["threads"]): row for row in report["rows"] if row["engine"] == "raw"}
    lines = [_COLUMNS, *(_cells(row, raw[row["codec"], row["threads"]]) for row in report["rows"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    for line in lines:
        words = (
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(words).rstrip())
    for why in report["without_zram"]:
        print(f"without zram: {why}")


def _cells(row: _core.BenchRow, raw: _core.BenchRow) -> tuple[str, ...]:
    pages = row["logical_bytes"] / PAGE_SIZE
    sizes = (row["data_bytes"], row["fragmentation_bytes"], row["meta_bytes"])
    return (
        row["engine"],
        row["codec"],
        row["alloc"] or "-",
        str(row["threads"]),
        "warm" if row["warm"] else "cold",
        f"{row['put_us']:.2f}",
        f"{row['put_p99_us']:.2f}",
        f"{row['put_us'] / raw['put_us']:.2f}",
        f"{row['get_us']:.2f}",
        f"{row['get_p99_us']:.2f}",
        f"{row['get_us'] / raw['get_us']:.2f}",
        *("-" if size is None else f"{size / pages:.0f}" for size in sizes),
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Where the measurement is, on stderr: one line that changes, or a line each elsewhere."""
    began = time.monotonic()
    if not sys.stderr.isatty():

        def say(what: str, done: int, all_: int) -> None:
            clock = f"[{time.monotonic() - began:6.1f}]"
            print(f"{clock} {done + 1}/{all_} {what}", file=sys.stderr, flush=True)

        yield say
        return

    def show(what: str, done: int, all_: int) -> None:
        print(f"\r\033[K{100 * done // all_:3d} % {what}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
