# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.report import RunError, write_report
from kztlab.report.chart import PALETTE, tint

if TYPE_CHECKING:
    from collections.abc import Callable

    from kztlab.observe import RunDirectory
    from kztlab.report import Summary

ORIGIN = 1000.0
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What the tests look at: text, charts, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.titles: list[str] = []
        self.sources: list[str] = []
        self._open: list[str] = []
        self._json = False
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._json = ("type", "application/json") in attrs
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where == "script":
            if self._json:
                self.figures.append(json.loads(data))
        elif where != "style":
            self.words.append(data)
            if where == "h3":
                self.titles.append(data.strip())

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(summarized: Callable[..., Summary], run: RunDirectory) -> Page:
    summarized()
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_share_of_hits_of_cached_pages_is_told(page: Page) -> None:
    assert "Clean pages of files" in page.text()
    assert " db 153,600 9,600 57,600 19,200 75.0% " in page.text()


def test_the_report_needs_no_other_file(page: Page) -> None:
    assert page.sources == []


def test_the_tables_say_it_all_without_a_script(page: Page) -> None:
    text = page.text()
    for words in ("made-up", "passed", "4 guests, 1 min 30 s", "web-2 nbd fill ok 59.5s 0 76,800"):
        assert words in text
    assert "web-1 76,800 76,800 100.0% 53,760 53,760 100.0%" in text
    assert "web-1 nbd put 76,800 5.1 22.4 81.0" in text
    assert "slowest page 0.25 s" in text
    assert "flush 0 - - -" in text
    assert "saved up to 7 MiB" in text
    assert "No samples of store from 49.0 s to 54.0 s: StoreUnreachable" in text


def test_charts_of_the_host_and_of_each_guest(page: Page) -> None:
    everyone = ["Store by guest", "Host memory taken", "Pages swapped out, by guest"]
    always = ["Memory pressure", "Host CPU"]
    stores = ["Memory", "Swap traffic", "Pages stored", "Compression ratio"]
    tmem = [*stores, "Cached pages of files", *always]
    base = ["Memory", "Swap traffic", "Swap in use", *always]
    assert page.titles == [*everyone, "The host as a whole", *[*stores, *always] * 2, *tmem, *base]
    assert len(page.figures) == len(page.titles)
    for figure in page.figures:
        assert figure["layout"]["yaxis"]["title"]["text"]
        assert figure["layout"]["xaxis"]["title"]["text"] == "time since start [s]"
        assert figure["layout"]["xaxis"]["range"] == [0, 90.0]
        assert {"fill"} == {label["text"] for label in figure["layout"]["annotations"]}


def test_a_guest_has_one_colour_everywhere(page: Page) -> None:
    assert len(set(PALETTE)) == len(PALETTE)
    stacked = {
        trace["name"]: trace["line"]["color"]
        for trace in page.figures[0]["data"] + page.figures[1]["data"] + page.figures[2]["data"]
        if trace["name"] in {"web-1", "web-2", "db", "base"}
    }
    assert list(stacked.values()).count(stacked["db"]) == 1
    for number, guest in enumerate(("web-1", "web-2", "db")):
        used = page.figures[4 + 6 * number]["data"][0]
        assert used["line"]["color"] == stacked[guest]
        assert used["fillcolor"] == tint(stacked[guest])


def test_a_gap_is_left_open_and_marked(page: Page) -> None:
    stored = page.figures[6]
    assert (
        stored["layout"]["shapes"][-1] | {"x0": 49.0, "x1": 54.0, "layer": "above"}
        == (stored["layout"]["shapes"][-1])
    )
    for trace in stored["data"]:
        assert trace["connectgaps"] is False
        known = dict(zip(trace["x"], trace["y"], strict=True))
        assert known[50.0] is None
        assert known[49.0] is not None
        assert known[54.0] is not None


def test_stacks_add_up_and_show_each_part(page: Page) -> None:
    layers = {trace["name"]: trace for trace in page.figures[0]["data"]}
    last = {name: trace["y"][-1] for name, trace in layers.items()}
    parts = {name: layers[name]["customdata"][-1] for name in ("web-1", "web-2", "db")}
    assert last["web-1"] == parts["web-1"]
    assert last["web-2"] == pytest.approx(parts["web-1"] + parts["web-2"], abs=0.01)
    assert last["db"] == pytest.approx(sum(parts.values()), abs=0.01)
    assert last["limit"] == 512
    drawn = [trace["name"] for trace in page.figures[0]["data"][:3]]
    assert drawn == ["db", "web-2", "web-1"], "the largest area is drawn first, under the others"


def test_what_went_wrong_is_shown_as_text_whatever_it_says(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    summarized(failed=True, errors=(RunError(message="</script><b>no</b>", guest="db"),))
    html = write_report(run).read_text(encoding="utf-8")
    text = Page(html).text()
    assert "failed" in text
    assert "</script><b>no</b>" in text
    assert "<expected> 5 & found 6" in text
    assert not re.search(r"<expected>|<b>no</b>", html)


def test_a_run_without_samples_has_a_report(
    summarized: Callable[..., Summary], run: RunDirectory
) -> None:
    for file in (run.path / "samples").iterdir():
        file.unlink()
    summarized()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "made-up" in page.text()


@pytest.mark.interop
def test_a_browser_draws_every_chart(
    summarized: Callable[..., Summary], run: RunDirectory, browser: Callable[[str], str]
) -> None:
    summarized()
    document = browser(write_report(run).as_uri())
    assert document.count('class="main-svg"') >= 27
    assert "web-2" in document
