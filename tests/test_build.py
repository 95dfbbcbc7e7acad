"""`build`: objects from nodes, against an allow-list."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from conftest import refuses

import jepa.build
from jepa.build import build, nearest
from jepa.errors import InputError


def test_nearest_matches_whole_keys_and_last_parts():
    options = ["jepa.learning_rate", "decoder.learning_rate", "seed", "world.size"]
    assert nearest("sed", options) == ["seed"]
    assert nearest("learning_rate", options) == ["jepa.learning_rate", "decoder.learning_rate"]
    assert nearest("qqqq", options) == []


def test_build_makes_nested_objects_and_passes_extra_arguments_as_they_are():
    node = {
        "_target_": "torch.nn.TransformerEncoder",
        "encoder_layer": {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 8, "nhead": 2},
        "num_layers": 3,
    }
    norm = torch.nn.LayerNorm(8)
    built = build(node, norm=norm, enable_nested_tensor=False)
    assert type(built) is torch.nn.TransformerEncoder
    assert len(built.layers) == 3
    assert built.norm is norm
    assert built.layers[0].self_attn.num_heads == 2
    assert set(node) == {"_target_", "encoder_layer", "num_layers"}  # the node is left as it was


def test_build_goes_through_lists_and_plain_mappings(monkeypatch):
    def collect(parts: list[Any], table: dict[str, Any]) -> tuple[Any, Any]:
        return parts, table

    collect.__module__ = "jepa.fake"
    monkeypatch.setitem(sys.modules, "jepa.fake", types.SimpleNamespace(collect=collect))
    relu = {"_target_": "torch.nn.ReLU"}
    node = {"_target_": "jepa.fake.collect", "parts": [relu, 1], "table": {"a": relu, "b": "text"}}
    parts, table = build(node)
    assert [type(part) for part in parts] == [torch.nn.ReLU, int]
    assert type(table["a"]) is torch.nn.ReLU
    assert table["b"] == "text"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torchvision.models.resnet18",
        "jepax.Thing",
        "torch.nnx.Linear",
        "jepa",
        "jepa.",
        "jepa..config",
        "jepa.errors.InputError.__init__",
        "jepa.__main__.run",
        "jepa.build.build()",
        "",
        3,
        None,
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_build_refuses_a_target_by_its_name_and_imports_nothing(monkeypatch, target, nested):
    imported: list[str] = []
    monkeypatch.setattr(jepa.build.importlib, "import_module", imported.append)
    node = {"_target_": target}
    refuses("_target_ must", build, {"_target_": "torch.nn.Sequential", "deep": [{"part": node}]} if nested else node)
    assert imported == []


@pytest.mark.parametrize(
    "target",
    [
        "jepa.os.system",  # not a module below the package
        "jepa.cli.os.system",  # a module's imports are no way to other packages
        "jepa.build.importlib.import_module",
        "jepa.cli.Path",  # imported from elsewhere
        "jepa.config.ValidationError",
        "torch.nn.functional.torch.load",
        "torch.nn.functional.boolean_dispatch",
        "jepa.build.ALLOWED_TARGETS",  # neither class nor function
        "jepa.errors.InputError.with_traceback",
        "jepa.nothing.Thing",
    ],
)
def test_build_refuses_what_is_not_defined_as_class_or_function_of_an_allowed_package(target):
    refuses(r"^_target_(: there is no module| must be a class or function)", build, {"_target_": target})


def test_build_names_the_nearest_target_argument_and_missing_arguments():
    refuses(r"got 'torch\.nn\.Linera'; nearest: Linear", build, {"_target_": "torch.nn.Linera"})
    with pytest.raises(InputError, match=r"Linear has no argument 'in_feature'; nearest"):
        build({"_target_": "torch.nn.Linear", "in_feature": 3, "out_features": 2})
    refuses(r"Linear needs the argument 'out_features'$", build, {"_target_": "torch.nn.Linear", "in_features": 3})
    nested = {"_target_": "torch.nn.Dropout", "q": 1}
    with pytest.raises(InputError, match=r"Dropout has no argument 'custom_encoder\.q'"):
        build({"_target_": "torch.nn.Transformer", "custom_encoder": nested})
    refuses(r"Linear has no argument '_partial_'", build, {"_target_": "torch.nn.Linear", "_partial_": True})


def test_build_refuses_nodes_without_target_and_arguments_given_twice():
    refuses("node must have a _target_, got the keys in_features", build, {"in_features": 3})
    with pytest.raises(InputError, match=r"^out_features is set by .*, got 2$"):
        build({"_target_": "torch.nn.Linear", "out_features": 2}, out_features=4)


def test_a_value_that_the_target_refuses_is_an_input_error_and_a_bug_is_not():
    refuses(r"^torch\.nn\.Dropout: dropout probability has to be", build, {"_target_": "torch.nn.Dropout", "p": 2.0})
    with pytest.raises(TypeError):
        build({"_target_": "torch.nn.Linear", "in_features": "three", "out_features": 1})
