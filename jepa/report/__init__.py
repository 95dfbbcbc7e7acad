"""One engine for reports: blocks of a document, and renderers for a terminal, Markdown and HTML."""

from jepa.report.blocks import (
    Block,
    Claim,
    Colours,
    Column,
    Columns,
    Definitions,
    Details,
    Figure,
    Heading,
    Report,
    Table,
    Text,
    side_by_side,
    table,
)
from jepa.report.figures import Dots, Fall, Line
from jepa.report.render import html, markdown, terminal, write_report

__all__ = [
    "Block",
    "Claim",
    "Colours",
    "Column",
    "Columns",
    "Definitions",
    "Details",
    "Dots",
    "Fall",
    "Figure",
    "Heading",
    "Line",
    "Report",
    "Table",
    "Text",
    "html",
    "markdown",
    "side_by_side",
    "table",
    "terminal",
    "write_report",
]
