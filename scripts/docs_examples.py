"""For mkdocstrings: doctests as blocks of code, which Markdown would read as quotations; keys of configurations."""

from __future__ import annotations

import inspect
import re
from pydoc import locate
from typing import Any

import griffe

from jepa.config import Config

_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.M | re.S)
_KEY = r"^    {}: (?P<type>.+?)(?: = (?P<default>.+?))?(?:  # (?P<comment>.+))?$"


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


class Keys(griffe.Extension):
    """A configuration shows one table of its keys, those of its bases included."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        found = locate(cls.path)
        if not (isinstance(found, type) and issubclass(found, Config) and cls.docstring):
            return
        cls.members.clear()
        cls.bases.clear()
        rows = [_row(found, name) for name in found.model_fields]
        if rows:
            table = ["| key | type | default | |", "|---|---|---|---|", *rows]
            cls.docstring.value += "\n\n" + "\n".join(table)


def _row(schema: type[Config], name: str) -> str:
    home = next(each for each in schema.__mro__ if name in inspect.get_annotations(each))
    line = re.search(_KEY.format(name), inspect.getsource(home), re.M)
    if line is None:
        raise ValueError(f"{home.__name__}.{name} must stand in one line")
    pieces = (line["comment"] or "").split("`")  # every other one is code
    pieces[::2] = [re.sub(r"([\[\]<>*_|])", r"\\\1", piece) for piece in pieces[::2]]
    default = f"`{line['default']}`" if line["default"] else "must be given"
    return f"| `{name}` | `{line['type']}` | {default} | {'`'.join(pieces)} |"
