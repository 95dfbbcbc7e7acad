"""The three renderers: blocks in, text out. No document takes part."""

from __future__ import annotations

import html.parser
import io
from dataclasses import replace

import pytest
from conftest import refuses
from PIL import Image

from jepa.report import figures
from jepa.report.blocks import Claim, Columns, Definitions, Figure, Heading, Report, Text
from jepa.report.render import html as page_of
from jepa.report.render import markdown, terminal, write_report
from jepa.report.tables import Column, table

HOSTILE = '<script>alert("1")</script> & $x_1$ | `code` *bold* [red]x[/red] {{ 7 * 7 }} \x00\x1b[31m\nnext'
VOID_TAGS = {"meta", "image", "path", "use", "line"}


class Reader(html.parser.HTMLParser):
    """Fails on a tag that is closed wrongly, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def draw(colours):
    figure = figures.sized(480, 300)
    axes = figure.add_axes((0.3, 0.2, 0.65, 0.75))
    figures.draw_dots(axes, HOSTILE, [figures.Dots(4, [(HOSTILE, 0.5)], 0.5), figures.Dots(3, [], 1.0)], colours)
    figures.label_bars(axes, [HOSTILE, "base"], colours)
    return figure


@pytest.fixture(scope="module")
def report() -> Report:
    """Every kind of block, with hostile words in each."""
    columns = [Column(HOSTILE, lambda x: HOSTILE, words=True), Column("v", lambda x: f"{x}.20 (1.00 to 2.00) est.")]
    made = replace(table(HOSTILE, columns, [(HOSTILE, [1, 2])]), colours={HOSTILE: 3})
    blocks = [
        Columns([[Claim(HOSTILE, "2.1×", HOSTILE, HOSTILE, "1.1×", HOSTILE)], [Claim("c", "void", "CIDEr-D")]]),
        Heading(HOSTILE, evidence=("measured", "estimated")),
        Text(HOSTILE, "note"),
        Heading("third", 3),
        made,
        Figure("fig", HOSTILE, draw, HOSTILE),
        Figure("wide", HOSTILE, draw, wide=True),
        Definitions([(HOSTILE, HOSTILE)]),
    ]
    return Report(HOSTILE, HOSTILE, [Claim("c", "2.1×", HOSTILE), made], blocks, draw, HOSTILE)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return page_of(report)


def test_the_page_is_well_formed_and_loads_nothing(page):
    read = Reader(page)
    assert not {"script", "link", "iframe"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert (value or "").startswith(("#", "data:image/png"))
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [(value or "")[1:] for name, value in read.attributes if name == "href" and value and value[0] == "#"]
    assert set(used) <= set(ids)


def test_hostile_words_are_shown_and_do_nothing(page, report):
    read = Reader(page)
    assert '<script>alert("1")</script> & $x_1$ | `code` *bold* [red]x[/red] {{ 7 * 7 }} [31m next' in read.words
    assert "\x00" not in page
    assert "\x1b" not in page
    words = markdown(report)
    assert "\\<script\\>" in words
    assert all(line.replace("\\|", "").count("|") == 3 for line in words.splitlines() if line.startswith("|"))
    shown = terminal(report, colour=False)
    assert "\x1b" not in shown
    assert "[red]x[/red]" in shown


def test_every_block_is_in_page_and_markdown(page, report):
    tags = Reader(page).tags
    for tag, count in {"h1": 1, "section": 1, "h3": 1, "table": 1, "svg": 2, "dl": 1}.items():
        assert tags.count(tag) == count, tag
    assert page.count('class="badge measured"') == 2  # the legend's and the heading's
    assert page.count('class="badge estimated"') == 4  # and of the two cells
    assert '<p class="number text">void</p>' in page
    assert "var(--series-3)" in page
    assert "(1.00\u00a0to\u00a02.00)" in page
    words = markdown(report)
    for text in ("(measured and estimated)", "### third", "| 1.20 (1.00 to 2.00) est. |", "2.1×", "void"):
        assert text in words


def test_the_terminal_has_bold_type_only_where_it_is_one(report):
    assert "\x1b[1m" in terminal(report, colour=True)
    lines = terminal(report, colour=False).splitlines()
    assert max(map(len, lines)) <= 100


def test_a_long_name_is_wrapped_and_not_cut():
    name = "the policy with a name that is longer than any column of a terminal would like to be " * 2
    columns = [Column("policy", lambda x: name.strip(), words=True), Column("value", lambda x: "1.00 (0.90 to 1.10)")]
    shown = terminal(Report("t", "k", [table("", columns, [("", [1])])], []), colour=False)
    assert shown.split().count("terminal") == 2
    assert "1.00 (0.90 to 1.10)" in shown
    assert "…" not in shown


def test_files_are_written_whole_or_not_at_all(report, tmp_path):
    paths = write_report(None, report, tmp_path / "deep", "comparison")
    assert sorted(paths) == ["comparison.html", "comparison.md", "comparison.png"]
    assert {path.name for path in (tmp_path / "deep").iterdir()} == set(paths)
    picture = Image.open(io.BytesIO(paths["comparison.png"].read_bytes()))
    assert picture.size == (720, 450)
    (tmp_path / "file").write_text("")
    refuses("must be writable", write_report, None, report, tmp_path / "file")
