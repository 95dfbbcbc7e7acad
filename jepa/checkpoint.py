"""A checkpoint is a folder: `model.safetensors`, `config.yaml` (plain data), `tokenizer.json`. Nothing is unpickled.

The record of its training, `training.json`, is written by `jepa.training.fit.run_stages`.

That of a language model has more of its tokenizer beside these; those of a VL-JEPA's pretrained text parts are in the
folders `tokenizers/<role>`. Parts that came from a hub are saved by their architecture, so that nothing is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa.build import Node, build_as
from jepa.errors import InputError

if TYPE_CHECKING:
    from jepa.models.llm_jepa import LLMJEPA
    from jepa.models.token_vlm import TokenVLM
    from jepa.models.vl_jepa import VLJEPA

T = TypeVar("T")
FORMAT = "jepa.checkpoint/1"
MODELS = {
    "vl_jepa": "jepa.models.vl_jepa.VLJEPA",
    "llm_jepa": "jepa.models.llm_jepa.LLMJEPA",
    "token_vlm": "jepa.models.token_vlm.TokenVLM",
}
_WEIGHTS, _CONFIG, _TOKENIZERS = "model.safetensors", "config.yaml", "tokenizers"


def save(model: VLJEPA | LLMJEPA | TokenVLM, config: Node, folder: Path) -> None:
    """Writes the checkpoint; each file appears whole or not at all, the configuration last.

    In the configuration's `model`, each part that has a `node()` is replaced by it, and `tokenizers` by their roles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / _WEIGHTS, lambda path: save_file(_tensors(model), path))
    model.tokenizer.save(folder)
    children: Iterable[tuple[str, Any]] = model.named_children()
    nodes = {name: part.node() for name, part in children if hasattr(part, "node")}
    node = {key: nodes.get(key, value) for key, value in config["model"].items()}
    own = {role: each for role, each in getattr(model, _TOKENIZERS, {}).items() if each is not model.tokenizer}
    node |= {_TOKENIZERS: list(own)} if own else {}
    for role, tokenizer in own.items():
        tokenizer.save(folder / _TOKENIZERS / role)
    text = yaml.safe_dump({"format": FORMAT, **config, "model": node}, sort_keys=False)
    _replace(folder / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load(folder: str | os.PathLike[str]) -> Any:
    """The model of a checkpoint folder, a `VLJEPA` or an `LLMJEPA`, on the CPU, in evaluation mode.

    Raises:
        InputError: a file is missing, truncated or of another format, or tensors do not fit or are not finite; they are
            listed.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = read_tensors(folder / _WEIGHTS, load_file)
    own = {}
    if roles := config["model"].pop(_TOKENIZERS, []):
        from jepa.data.pretrained_tokenizer import PretrainedTokenizer

        own = {role: PretrainedTokenizer(str(folder / _TOKENIZERS / role)) for role in roles}
    model = build_model(config, _model_type(config).tokenizer_type.load(folder), own)
    expected = _tensors(model)
    wrong = [f"missing {name}" for name in expected if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in expected]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(each.shape)}"
        for name, each in expected.items()
        if name in tensors and tensors[name].shape != each.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{folder / _WEIGHTS} does not fit its configuration: {'; '.join(wrong[:5])}{more}")
    model.load_state_dict(tensors, strict=False)  # what is not saved is tied to what is
    sums = {name: parameter.detach().sum(dtype=torch.float64) for name, parameter in model.named_parameters()}
    if broken := [name for name, total in sums.items() if not total.isfinite()]:
        raise InputError(f"{folder / _WEIGHTS}: weights must be finite numbers, got others in {', '.join(broken[:5])}")
    return model.eval()


def read_tensors(path: Path, load: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """What `load` of safetensors reads from a file. Raises `InputError` if it is missing or not whole."""
    try:
        return load(path)
    except FileNotFoundError:
        raise InputError(f"tensors not found: {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None


def read_config(folder: Path) -> Node:
    """The plain configuration that the checkpoint was trained with."""
    path = folder / _CONFIG
    if not folder.is_dir():
        raise InputError(f"checkpoint not found: {folder}")
    if not path.is_file():
        raise InputError(f"checkpoint configuration not found: {path}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a mapping, got {type(config).__name__}")
    if config.get("format") != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT!r}, got {config.get('format')!r}")
    variant = config.setdefault("variant", "vl_jepa")
    if variant not in MODELS:
        raise InputError(f"{path}: variant must be one of {', '.join(MODELS)}, got {variant!r}")
    for key in ("model", "data" if variant == "llm_jepa" else "world"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: {key} must be a mapping, got {config.get(key)!r}")
    return config


def build_model(config: Node, tokenizer: Any, tokenizers: Mapping[str, Any] | None = None) -> Any:
    """The model of a plain configuration, with fresh weights: a `VLJEPA` or an `LLMJEPA`, as its `variant` says.

    `tokenizers` are those of a VL-JEPA's pretrained text parts by role; without them, its configuration names them.
    """
    extra = {_TOKENIZERS: tokenizers} if tokenizers else {}
    return build_as(_model_type(config), "model", config["model"], tokenizer=tokenizer, **extra)


def _model_type(config: Node) -> Any:
    return resolve_name(MODELS[config.get("variant", "vl_jepa")])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, each tensor once: of tied ones the first name counts."""
    seen: dict[tuple[int, int], str] = {}
    kept = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and seen.setdefault(key, name) != name:
            continue
        kept[name] = tensor.contiguous()
    return kept


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
