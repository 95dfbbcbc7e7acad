"""The renderers of reports: blocks to a terminal's text, to Markdown, to one HTML page. They know no document kind."""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as Rich

from jepa.report import figures
from jepa.report.blocks import ESTIMATED, MEASURED, Block, Claim, Columns, Definitions, Heading, Report, Text
from jepa.report.format import clean
from jepa.report.tables import EST, Table
from jepa.results import Document, write_files

WIDTH = 100


def write_report(
    document: Document | None, report: Report, folder: str | Path, stem: str = "report"
) -> dict[str, Path]:
    """Write results.json, report.md, report.html and report.png into a folder; return their paths by name.

    Without `document` or `overview` that file is left out. Files are replaced as a whole, or `InputError` is raised.
    """
    contents = {} if document is None else {document.file_name: document.to_json()}
    contents |= {f"{stem}.md": markdown(report).encode(), f"{stem}.html": html(report).encode()}
    if report.overview is not None:
        with figures.drawing():
            contents[f"{stem}.png"] = figures.png(report.overview(figures.LIGHT))
    paths = {name: Path(folder) / name for name in contents}
    write_files({paths[name]: content for name, content in contents.items()})
    return paths


# --- A terminal.


def terminal(report: Report, colour: bool | None = None) -> str:
    """The summary of a report for a terminal of 100 columns. `colour`: bold type; by default if stdout is a terminal.

    >>> print(terminal(Report("Title", "run", [Text("A *word*.")], [])))
    Title
    run
    <BLANKLINE>
    A *word*.
    """
    styled = sys.stdout.isatty() if colour is None else colour
    console = Console(
        file=io.StringIO(),
        width=WIDTH,
        force_terminal=styled,
        force_jupyter=False,
        color_system="standard" if styled else None,
        no_color=True,
        highlight=False,
        _environ={},
    )
    for shown in (Rich(clean(report.title), "bold"), Rich(clean(report.kicker)), "", *_printed(report.summary)):
        console.print(shown)
    console.file.seek(0)
    return "\n".join(line.rstrip() for line in console.file.read().splitlines()).rstrip()


def _printed(blocks: Sequence[Block]) -> Iterator[Rich | Grid]:
    for block in blocks:
        match block:
            case Heading(text):
                yield Rich(clean(text), "bold")
            case Text(text):
                yield Rich(clean(text))
            case Claim():
                yield Rich(f"{clean(block.title)}: {clean(block.figure)}", "bold")
                second = f"{block.second_figure} {block.second_text}".strip()
                yield from (Rich(clean(text)) for text in (block.text, block.detail, second) if text)
            case Table():
                yield _grid(block)


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    body = [list(map(clean, row)) for _, rows in table.groups for row in rows]
    cells = [max((len(row[index]) for row in body), default=0) for index in range(len(table.header))]
    tight = sum(map(max, cells, map(len, table.header))) + 3 * len(cells) > WIDTH
    for index, (title, widest) in enumerate(zip(map(clean, table.header), cells, strict=True)):
        if index < table.text_columns:
            grid.add_column(Rich(title), overflow="fold", min_width=0)
        else:  # headings wrap, at every word where room is scarce; numbers do not
            width = max(widest, *map(len, title.split())) if tight else None
            grid.add_column(Rich(title), overflow="fold", min_width=widest, width=width, justify="right")
    for title, rows in table.groups:
        if title:
            grid.add_row(Rich(clean(title), "bold"))
        for row in rows:
            grid.add_row(*(Rich(clean(cell)) for cell in row))
    return grid


# --- Markdown.


def markdown(report: Report) -> str:
    """The whole report as Markdown; figures are left out.

    >>> markdown(Report("Title", "run", [], [Heading("Part"), Text("a_b")]))
    '# Title\\n\\nrun\\n\\n## Part\\n\\na\\\\_b\\n'
    """
    parts = [f"# {_escape(report.title)}", _escape(report.kicker), *_marked(report.blocks), _escape(report.footer)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _marked(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading(text, level, evidence):
                yield f"{'#' * level} {_escape(text)}" + (f" ({' and '.join(evidence)})" if evidence else "")
            case Text(text):
                yield _escape(text)
            case Claim():
                yield f"**{_escape(block.title)}: {_escape(block.figure)}** {_escape(f'{block.text} {block.detail}')}"
                if block.second_figure:
                    yield f"**{_escape(block.second_figure)}** {_escape(block.second_text)}"
            case Table():
                yield _markdown_table(block)
            case Columns(columns):
                for column in columns:
                    yield from _marked(column)
            case Definitions(entries):
                yield from (f"**{_escape(term)}.** {_escape(text)}" for term, text in entries)


def _escape(text: str) -> str:
    """Data in Markdown: no markup, no cell borders, no HTML."""
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", clean(text))


def _markdown_table(table: Table) -> str:
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.header))]
    lines = [list(map(_escape, table.header)), rule]
    for title, rows in table.groups:
        if title:
            lines.append([f"**{_escape(title)}**"] + [""] * (len(table.header) - 1))
        lines += [list(map(_escape, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- HTML.


def html(report: Report) -> str:
    """The whole report as one page: no network, no scripts; it follows the reader's light or dark theme."""
    sections: list[tuple[Heading | None, list[Block]]] = [(None, [])]
    for block in report.blocks:
        if isinstance(block, Heading) and block.level == 2:
            sections.append((block, []))
        else:
            sections[-1][1].append(block)
    themes = {"light": figures.LIGHT, "dark": figures.DARK}
    return _template().render(report=report, sections=sections, themes=themes).strip() + "\n"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jepa.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": _words, "kind": lambda block: type(block).__name__}
    environment.globals |= {"svg": figures.svg, "EST": EST, "EVIDENCE": (MEASURED, ESTIMATED)}
    return environment.get_template("page.html.j2")


def _words(text: str) -> str:
    """Clean text that keeps an interval in one piece, and a number beside its per cent sign."""
    spanned = re.sub(r"\(([+−]?[\d.,]+) to ([+−]?[\d.,]+)\)", "(\\1\u00a0to\u00a0\\2)", clean(text))
    return spanned.replace(" %", "\u00a0%")
