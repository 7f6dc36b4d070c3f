# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench`: measure, print the medians side by side as ratios, write all values as JSON."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from statistics import median

from bench import cleancache, fio, guest_fio, guests, store
from bench.lab import Processor
from bench.ratios import Ratio
from bench.servers import SERVERS

MIB = 1 << 20
OWN = SERVERS[0].name
PEERS = [server.name for server in SERVERS[1:]]


def machine() -> dict[str, object]:
    """Say what the figures were taken on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load_before": os.getloadavg(),
    }


def print_row(label: str, *cells: str) -> None:
    print(f"  {label:<28}" + "".join(f"{cell:>18}" for cell in cells))


def print_fio(rates: list[fio.Figure], held: list[fio.Held], repetitions: int) -> None:
    """Print rates of each server, and the own one's as multiples of its peers'."""
    by_key = {(figure.data, figure.job, figure.server): figure.median for figure in rates}
    memory = {(figure.data, figure.server): figure.median for figure in held}
    print(
        f"\nfio, nbd engine, {fio.DEVICE_BYTES // MIB} MiB, one connection, queue depth 16;"
        f" MiB/s, median of {repetitions}"
    )
    for data in fio.COMPRESSIBLE_PERCENT:
        print()
        print_row(data, OWN, *PEERS, *(f"× {peer.removeprefix('nbdkit ')}" for peer in PEERS))
        for job in fio.JOBS:
            own = by_key[data, job.name, OWN]
            theirs = [by_key[data, job.name, peer] for peer in PEERS]
            ratios = [f"{own / rate:.2f}" for rate in theirs]
            print_row(job.name, *(f"{rate:.0f}" for rate in (own, *theirs)), *ratios)
        sizes = [memory[data, server.name] for server in SERVERS]
        print_row("memory held when full, MiB", *(f"{size / MIB:.0f}" for size in sizes))


def print_guest_fio(figures: list[guest_fio.Figure], rounds: int) -> None:
    """Print requests a second of each disk, and the own one's as multiples of its peers'."""
    runs = {(each.data, each.pattern, each.disk): each for each in figures}
    own, *peers = guest_fio.SERIALS
    print(
        f"\nfio in a guest, libaio, 4 KiB, queue depth {guest_fio.DEPTH},"
        f" {guest_fio.DEVICE_BYTES // MIB} MiB; thousands a second, median of {rounds};"
        "\nratios: mean of rounds [95 % interval]"
    )
    for data in fio.COMPRESSIBLE_PERCENT:
        print()
        print_row(data, own, *peers, *(f"× {peer}" for peer in peers))
        for pattern in guest_fio.PATTERNS:
            mine, *theirs = (runs[data, pattern, disk] for disk in guest_fio.SERIALS)
            rates = [f"{each.median / 1000:.1f}" for each in (mine, *theirs)]
            ratios = [
                str(Ratio.of(mine.requests_per_second, each.requests_per_second)) for each in theirs
            ]
            print_row(pattern, *rates, *ratios)


def parts(used: Sequence[Processor]) -> str:
    """The medians of processor time: the guest's, QEMU's other threads', the store's."""
    each = zip(*map(astuple, used), strict=True)
    return " + ".join(f"{median(part):.1f}" for part in each)


def print_guests(figures: list[guests.Figure], rounds: int) -> None:
    """Print seconds over each frontend, as multiples of the baselines', and who was at work."""
    print(
        f"\nkzt-load, twice in a 192 MiB guest; seconds, medians of {rounds};"
        " ratios: mean of rounds [95 % interval];"
        "\nprocessor time: the guest's, QEMU's other threads', the store's"
    )
    for load in dict.fromkeys(figure.load for figure in figures):
        same = [figure for figure in figures if figure.load == load]
        baselines = [figure for figure in same if figure.frontend in guests.BASELINES]
        # The same over another image, where several are compared.
        first = {
            each.frontend: each
            for each in figures
            if each.load == replace(load, image=figures[0].load.image)
        }
        columns = ["seconds", "pages swapped", *(f"× {each.frontend}" for each in baselines)]
        compared = load.image != figures[0].load.image
        if compared:
            columns.append("× first image")
        print(f"\n{load.image}")
        print_row(f"{load.size}, virtual CPUs: {load.vcpus}", *columns, "processor time")
        for figure in same:
            others = [*baselines, first.get(figure.frontend)] if compared else baselines
            print_row(
                figure.frontend,
                f"{figure.median:.1f}",
                f"{sorted(figure.swapped_pages)[rounds // 2]}",
                *(str(Ratio.of(figure.seconds, each.seconds)) if each else "–" for each in others),
                parts(figure.processor),
            )


def print_cleancache(figures: list[cleancache.Figure], rounds: int) -> None:
    """Print each reading's seconds in all ways, as multiples of those without cached pages."""
    baselines = [figure for figure in figures if figure.name in cleancache.BASELINES]
    ratios = [f"× {each.name}" for each in baselines]
    print(
        f"\nfiles of {cleancache.FILE_BYTES // MIB} MiB, read in a guest of"
        f" {cleancache.MEMORY_MIB} MiB from a disk past the host's cache; medians of {rounds};"
        "\ndisk: a guest without tmem; the others are one guest, its module kztmem as they say;"
        "\nratios: mean of rounds [95 % interval];"
        " processor time: the guest's, QEMU's other threads', the store's"
    )
    for number, label in enumerate(cleancache.PASSES):
        print()
        columns = ("seconds", "MiB from disk", "pages hit", "pages put", *ratios, "processor time")
        print_row(label, *columns)
        for figure in figures:
            passes = figure.passes(number)
            seconds = [each.seconds for each in passes]
            others = ([each.seconds for each in other.passes(number)] for other in baselines)
            print_row(
                figure.name,
                f"{median(seconds):.2f}",
                f"{median(each.disk_mib for each in passes):.0f}",
                f"{median(each.hits for each in passes):.0f}",
                f"{median(each.puts for each in passes):.0f}",
                *(str(Ratio.of(seconds, other)) for other in others),
                parts([each.processor for each in passes]),
            )


def print_store(all_figures: list[store.Figures], codec: str, repetitions: int) -> None:
    """Print the store's times as multiples of the codec's, and its memory beside zram's."""
    print(
        f"\nkztlab bench store, {codec}, warm, one thread; bytes for each page,"
        f" medians of {repetitions}\n"
    )
    columns = ("put × raw", "get × raw", "2 threads, put", "get", "data", "zram's data", "meta, %")
    print_row("", *columns)
    for figures in all_figures:
        raw, own = figures.find("raw"), figures.find("store")
        both, zram = figures.find("store", threads=2), figures.find("zram")
        if raw is None or own is None or both is None:
            raise AssertionError
        pages = own["logical_bytes"] / 4096
        print_row(
            figures.corpus,
            *(f"{own[key] / raw[key]:.2f}" for key in ("put_us", "get_us")),
            *(f"× {2 * own[key] / both[key]:.2f}" for key in ("put_us", "get_us")),
            f"{own['data_bytes'] / pages:.0f}",
            f"{zram['data_bytes'] / pages:.0f}" if zram else "none here",
            f"{100 * own['meta_bytes'] / own['logical_bytes']:.2f}",
        )


PARTS = ("fio", "guest-fio", "guests", "cleancache", "store")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="measure one part (default: all)")
    parser.add_argument(
        "--repetitions",
        type=positive,
        default=5,
        help="of all but guests and cleancache (default: 5)",
    )
    parser.add_argument("--guest-repetitions", type=positive, default=3, help="(default: 3)")
    parser.add_argument(
        "--guest-sizes",
        nargs="+",
        default=["160MiB", "450MiB"],
        metavar="SIZE",
        help="of their load (default: 160MiB 450MiB)",
    )
    parser.add_argument(
        "--guest-vcpus", nargs="+", type=positive, default=[1, 2], help="(default: 1 2)"
    )
    parser.add_argument(
        "--frontends",
        nargs="+",
        choices=guests.FRONTENDS,
        default=guests.FRONTENDS,
        help="of the guests (default: all)",
    )
    parser.add_argument(
        "--guest-images",
        nargs="+",
        default=[guests.IMAGE],
        metavar="IMAGE",
        help=f"that guests boot, several to compare them (default: {guests.IMAGE}, whose kernel"
        " serves all frontends; others lack tmem, which is left out there)",
    )
    parser.add_argument("--codec", default="lzo", help="of the store's part (default: lzo)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    arguments = parser.parse_args()

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result: dict[str, object] = {"machine": machine()}
    if arguments.only in {None, "store"}:
        stores = store.compare(arguments.codec, arguments.repetitions, progress)
        result["store"] = [asdict(figure) for figure in stores]
        print_store(stores, arguments.codec, arguments.repetitions)
    if arguments.only in {None, "fio"}:
        rates, held = fio.compare(SERVERS, arguments.repetitions, progress)
        result["fio"] = [asdict(figure) for figure in rates]
        result["memory"] = [asdict(figure) for figure in held]
        print_fio(rates, held, arguments.repetitions)
    if arguments.only in {None, "guest-fio"}:
        inside = guest_fio.compare(arguments.repetitions, progress)
        result["guest_fio"] = [asdict(figure) for figure in inside]
        print_guest_fio(inside, arguments.repetitions)
    if arguments.only in {None, "guests"}:
        loads = [
            guests.Load(size, vcpus, image)
            for vcpus in arguments.guest_vcpus
            for size in arguments.guest_sizes
            for image in arguments.guest_images
        ]
        figures = guests.compare(arguments.frontends, loads, arguments.guest_repetitions, progress)
        result["guests"] = [asdict(figure) for figure in figures]
        print_guests(figures, arguments.guest_repetitions)
    if arguments.only in {None, "cleancache"}:
        readings = cleancache.compare(arguments.guest_images, arguments.guest_repetitions, progress)
        result["cleancache"] = [asdict(figure) for figure in readings]
        print_cleancache(readings, arguments.guest_repetitions)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
