"""The explanations that reports print, read from ``notes.yaml``."""

from __future__ import annotations

from importlib.resources import files

import yaml

from jepa.report.blocks import Definitions, Text

_READ = yaml.safe_load(files("jepa.report").joinpath("notes.yaml").read_text(encoding="utf-8"))


def note(name: str, style: str = "note") -> Text:
    """An explanation by its name."""
    return Text(_READ["notes"][name], style)


def terms(kind: str) -> Definitions:
    """The terms of a kind of document, and their meaning."""
    return Definitions(list(_READ["terms"][kind].items()))
