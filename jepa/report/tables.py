"""Tables, which are blocks of a report: declared column by column, or side by side from the cells of each column."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

NONE = "–"  # a cell without a value
EST = " est."  # at the end of a cell: the value is estimated, not measured

Item = TypeVar("Item")


@dataclass(frozen=True)
class Table:
    """Cells as text, in titled groups of rows. The first `text_columns` hold words. `colours` dot the row headings."""

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


def table(title: str, columns: Sequence[Column[Item]], groups: Iterable[tuple[str, Iterable[Item]]]) -> Table:
    """A table from its columns; columns of words come first.

    >>> columns = [Column("name", str, words=True), Column("square", lambda x: str(x * x))]
    >>> table("", columns, [("", [2, 3])]).groups
    [('', [['2', '4'], ['3', '9']])]
    """
    cells = [(name, [[column.cell(item) for column in columns] for item in items]) for name, items in groups]
    words = sum(column.words for column in columns)
    return Table(title, [column.title for column in columns], cells, words)


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
