"""Who may import whom: the rooms of the package and the libraries at its edge, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jepa

PACKAGE = Path(jepa.__file__).parent
PARTS = {"encoders", "predictors", "decoders", "losses"}
CORE = PARTS | {"metrics", "operations", "data", "models", "selective"}
# A room is a folder or a module of jepa/. Each may import itself, `errors`, and:
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "pretrained": set(),
    "losses": set(),
    "metrics": set(),
    "operations": set(),
    "data": {"pretrained"},
    "encoders": {"losses", "pretrained"},
    "predictors": {"losses", "pretrained"},
    "decoders": {"losses", "operations", "pretrained"},
    "selective": {"metrics", "operations"},
    "models": PARTS | {"data", "operations", "pretrained", "selective"},
    "config": set(),
    "checkpoint": {"config", "models", "data"},
    "training": CORE | {"config", "checkpoint"},
    "evaluation": CORE | {"config", "checkpoint", "report"},
    "results": {"metrics", "operations"},
    "report": {"results"},
    "studies": CORE | {"config", "checkpoint", "evaluation", "report", "results", "training"},
    "cli": CORE | {"config", "checkpoint", "training", "evaluation", "report", "studies"},
}
LIBRARIES = {
    "lightning": {"training"},
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(module: str) -> str:
    """`jepa.data.world` -> `data`."""
    return module.split(".")[1]


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it; a short name of `jepa` counts as its home."""
    parent = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin == "jepa":
                yield from (jepa._HOMES.get(alias.name, f"jepa.{alias.name}") for alias in node.names)
            else:
                yield origin


def imports_of(path: Path) -> tuple[str, list[str]]:
    parts = ("jepa", *path.relative_to(PACKAGE).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return module, list(imports(path.read_text(encoding="utf-8"), module, is_package))


def test_the_reader_of_imports_sees_every_form():
    source = """
import os, jepa.cli
from jepa import load, __version__, models
from jepa.data.world import World
from . import near
from ..losses import infonce
def late():
    if True:
        from hydra import main
"""
    assert list(imports(source, "jepa.encoders.vision", False)) == [
        "os", "jepa.cli", "jepa.checkpoint", "jepa.__version__", "jepa.models", "jepa.data.world",
        "jepa.encoders", "jepa.losses", "hydra",
    ]  # fmt: skip
    assert list(imports("from .cli import main", "jepa", True)) == ["jepa.cli"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_room_may(path):
    module, names = imports_of(path)
    here = room(module)
    assert here in MAY_IMPORT, f"{here} is a new room: say here what it may import"
    for name in names:
        library = name.split(".")[0]
        if library == "jepa":
            assert name != "jepa" or here == "cli", f"{module} imports all of jepa"
            if name in ("jepa", "jepa.__version__"):
                continue
            assert room(name) in MAY_IMPORT[here] | {here, "errors"}, f"{module} must not import {name}"
        assert here in LIBRARIES.get(library, {here}), f"{module} must not import {name}"


def test_rooms_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        module, names = imports_of(path)
        rooms = {room(name) for name in names if name.startswith("jepa.")} & MAY_IMPORT.keys()
        graph.setdefault(room(module), set()).update(rooms - {room(module)})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", ["jepa", "jepa.cli", "jepa.config"])
def test_imports_are_light(module):
    heavy = ["torch", "lightning", "hydra", "omegaconf", "timm", "numpy"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).strip() == "[]"


@pytest.mark.parametrize("name", sorted(jepa._HOMES))
def test_the_short_names_of_the_package_lead_home(name):
    assert name in jepa.__all__
    assert name in dir(jepa)
    value = getattr(jepa, name)
    assert value is getattr(sys.modules[jepa._HOMES[name]], name)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jepa' has no attribute 'lode'"):
        _ = jepa.lode
