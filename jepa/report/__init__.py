"""One engine for reports: blocks of a document, and renderers for a terminal, Markdown and HTML."""

from jepa.report.blocks import Block, Claim, Colours, Columns, Definitions, Figure, Heading, Report, Text
from jepa.report.figures import Dots, Line
from jepa.report.render import html, markdown, terminal, write_report
from jepa.report.tables import Column, Table, side_by_side, table

__all__ = [
    "Block",
    "Claim",
    "Colours",
    "Column",
    "Columns",
    "Definitions",
    "Dots",
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
