"""What a report is made of: blocks, which a kind of document builds once and three renderers show.

A renderer knows blocks and no document. Text is plain; a renderer escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


Colours = Mapping[str, str]  # a theme: the name of a colour, such as "ink" or "series-1", and its value

MEASURED, ESTIMATED = "measured", "estimated"
NONE = "–"  # a cell without a value
EST = " est."  # at the end of a cell: the value is estimated, not measured

Item = TypeVar("Item")


@dataclass(frozen=True)
class Heading:
    """The start of a section (level 2) or of a part of it (3, 4). `evidence`: `MEASURED`, `ESTIMATED`, or both."""

    text: str
    level: int = 2
    evidence: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph. A "note" explains the block that follows it, in smaller type."""

    text: str
    style: str = "plain"  # or "note", "lede"


@dataclass(frozen=True)
class Claim:
    """The one figure that a reader takes away: `figure` in large type, what it claims, and how firm that is."""

    title: str
    figure: str
    text: str
    detail: str = ""
    second_figure: str = ""
    second_text: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text, in titled groups of rows (title "": no heading).

    The first `text_columns` columns hold words, the others numbers. `colours` gives row headings the dot of a series.
    """

    title: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    text_columns: int = 1
    colours: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column of a table: its title beside the function that writes an item's cell. `words`: no number."""

    title: str
    cell: Callable[[Item], str]
    words: bool = False


def table(
    title: str,
    columns: Sequence[Column[Item]],
    groups: Iterable[tuple[str, Iterable[Item]]],
    colours: Mapping[str, int] | None = None,
) -> Table:
    """A table from its columns; columns of words come first.

    >>> columns = [Column("name", str, words=True), Column("square", lambda x: str(x * x))]
    >>> table("", columns, [("", [2, 3])]).groups
    [('', [['2', '4'], ['3', '9']])]
    """
    cells = [(name, [[column.cell(item) for column in columns] for item in items]) for name, items in groups]
    words = sum(column.words for column in columns)
    return Table(title, [column.title for column in columns], cells, words, colours or {})


Cells = Mapping[str, Mapping[str, str]]  # of a column: the title of a group, then that of a row, and the cell


def side_by_side(
    title: str, columns: Sequence[tuple[str, Cells]], words: bool = False, differing: Container[str] = ()
) -> Table:
    """A table from the cells of its columns. A row that a column lacks is `NONE` there.

    Groups in `differing` show only rows whose cells differ. Empty groups are left out. `words`: no numbers anywhere.

    >>> side_by_side("", [("a", {"": {"x": "1"}}), ("b", {"": {"y": "2"}})]).groups
    [('', [['x', '1', '–'], ['y', '–', '2']])]
    """
    groups = []
    for group in dict.fromkeys(group for _, cells in columns for group in cells):
        found = [cells.get(group, {}) for _, cells in columns]
        titles = dict.fromkeys(row for column in found for row in column)
        rows = [[row, *(column.get(row, NONE) for column in found)] for row in titles]
        shown = [row for row in rows if group not in differing or len(set(row[1:])) > 1]
        if shown:
            groups.append((group, shown))
    return Table(title, ["", *(name for name, _ in columns)], groups, 1 + len(columns) * words)


@dataclass(frozen=True)
class Figure:
    """A drawing. `draw` makes it in the colours of a theme; `name` is unique in the report and safe in a file name."""

    name: str
    title: str
    draw: Callable[[Colours], Drawing]
    caption: str = ""
    wide: bool = False  # scrolls sideways on a narrow screen


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where there is room; each entry is a column."""

    columns: Sequence[Sequence[Block]]


@dataclass(frozen=True)
class Details:
    """A table, or preformatted text, that is folded away until the reader asks for it."""

    summary: str
    content: Table | str


@dataclass(frozen=True)
class Definitions:
    """Terms and what is meant by them."""

    entries: Sequence[tuple[str, str]]


Block = Heading | Text | Claim | Table | Figure | Columns | Details | Definitions


@dataclass(frozen=True)
class Report:
    """A report: `summary` fits a terminal's screen, `blocks` are the whole of it, `overview` is its picture."""

    title: str
    kicker: str
    summary: Sequence[Block]
    blocks: Sequence[Block]
    overview: Callable[[Colours], Drawing] | None = None
    footer: str = ""
