"""The explanations that reports print, read from ``notes.yaml``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files

import yaml

from jepa.report.blocks import Definitions, Text


@functools.cache
def _read() -> Mapping[str, Mapping[str, str]]:
    read = yaml.safe_load(files("jepa.report").joinpath("notes.yaml").read_text(encoding="utf-8"))
    return {"notes": read["notes"], **read["terms"]}


def note(name: str, style: str = "note") -> Text:
    """An explanation by its name."""
    return Text(_read()["notes"][name], style)


def terms(kind: str) -> Definitions:
    """The terms of a kind of document, and their meaning."""
    return Definitions(list(_read()[kind].items()))
