"""What a report is made of: blocks, which a kind of document builds once and three renderers show.

A renderer knows blocks and no document. Text is plain; a renderer escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jepa.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Colours = Mapping[str, str]  # a theme: the name of a colour, such as "ink" or "series-1", and its value
MEASURED, ESTIMATED = "measured", "estimated"


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
class Definitions:
    """Terms and what is meant by them."""

    entries: Sequence[tuple[str, str]]


Block = Heading | Text | Claim | Table | Figure | Columns | Definitions


@dataclass(frozen=True)
class Report:
    """A report: `summary` fits a terminal's screen, `blocks` are the whole of it, `overview` is its picture."""

    title: str
    kicker: str
    summary: Sequence[Block]
    blocks: Sequence[Block]
    overview: Callable[[Colours], Drawing] | None = None
    footer: str = ""
