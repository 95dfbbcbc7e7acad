"""From a results document to a Markdown table, plots and one self-contained HTML page.

Everything here takes the plain results dictionary (schema ``jepa.results/2``) and nothing else: no model,
no checkpoint, no encoder. :func:`write_report` leaves the four files of a report in a folder.
"""

from __future__ import annotations

from jepa.report.page import html, write_report
from jepa.report.schema import SCHEMA, read_results, validate_results, write_results
from jepa.report.tables import markdown, summary

__all__ = [
    "SCHEMA",
    "html",
    "markdown",
    "read_results",
    "summary",
    "validate_results",
    "write_report",
    "write_results",
]
