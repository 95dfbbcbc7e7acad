"""A checkpoint is a folder: `model.safetensors`, `config.yaml` (plain data), `tokenizer.json`. Nothing is unpickled.

The record of its training, `training.json`, is written by `jepa.training.fit.run_stages`.

That of a language model has more of its tokenizer beside these; those of a VL-JEPA's pretrained text parts are in the
folders `tokenizers/<role>`. Parts that came from a hub are saved by their architecture, so that nothing is missing.

A name `organisation/name` is a checkpoint on the Hugging Face hub.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa.build import Node, build_as, check_node
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
_TARGETS = {  # what a checkpoint's configuration may call, by key
    "model": ("jepa.models", "jepa.encoders", "jepa.predictors", "jepa.decoders"),
    "world": ("jepa.data",),
    "data": ("jepa.data",),
}
_VALUES = 100_000  # of a configuration
_ROOM = 1 << 26  # bytes of a model's tables
_STAGE: dict[str, Any] = {"name": str, "steps": int, "samples": int, "seconds": int | float, "curve": list}
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")  # organisation/name, on a hub
_SHARED = ("*.safetensors", "*.json", "*.yaml", "*.jinja", "*.txt", "README.md")  # what is uploaded and downloaded
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")


def save(model: VLJEPA | LLMJEPA | TokenVLM, config: Node, folder: str | os.PathLike[str]) -> None:
    """Writes the checkpoint; each file appears whole or not at all, the configuration last.

    In the configuration's `model`, each part that has a `node()` is replaced by it, and `tokenizers` by their roles.
    """
    folder = Path(folder)
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


def load(name: str | os.PathLike[str], revision: str | None = None) -> Any:
    """The model of a checkpoint, a `VLJEPA` or an `LLMJEPA`, on the CPU, in evaluation mode: see `folder_of`.

    It has two methods more: `save_pretrained(folder)`, and `push_to_hub("organisation/name")`, see `push`.

    Raises:
        InputError: a file is missing, cut off or of another format, or tensors (listed) do not fit or are not finite.
    """
    folder = folder_of(os.fspath(name), revision)
    config = read_config(folder)
    node, own = dict(config["model"]), {}
    with _no_larger_than(folder):
        if roles := node.pop(_TOKENIZERS, []):
            from jepa.data.pretrained_tokenizer import PretrainedTokenizer

            own = {role: PretrainedTokenizer(str(folder / _TOKENIZERS / role)) for role in roles}
        model = build_model({**config, "model": node}, _model_type(config).tokenizer_type.load(folder), own)
    load_weights(model, folder)
    model.save_pretrained = partial(save, model, config)
    model.push_to_hub = partial(_push_model, model, config)
    return model.eval()


@contextmanager
def _no_larger_than(folder: Path) -> Iterator[None]:
    """Within it, a model is built of what others wrote.

    It may register some times as many tensors and bytes as the weights have: tied tensors count twice, tables are not
    saved. More of them, or anything that a library stumbles over, is an `InputError`.
    """
    path = folder / _WEIGHTS
    stored = read_tensors(path, lambda path: dict.fromkeys(safe_open(path, framework="pt").keys(), 0))
    tensors, size = 0, 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, size
        tensors, size = tensors + 1, size + (0 if tensor is None else tensor.nbytes)
        if tensors > 100 + 4 * len(stored) or size > _ROOM + 4 * path.stat().st_size:
            raise InputError(f"the model must fit its weights, {len(stored)} tensors, got one that is larger")

    module = torch.nn.modules.module
    hooks = [module.register_module_parameter_registration_hook(count)]  # they come before values are drawn
    hooks.append(module.register_module_buffer_registration_hook(count))
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{folder}: no model can be built of its files: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the weights of a checkpoint into a model of the same architecture.

    Raises:
        InputError: the file is missing or truncated, or tensors do not fit or hold no finite numbers; they are listed.
    """
    tensors, expected = read_tensors(folder / _WEIGHTS, load_file), _tensors(model)
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


def read_tensors(path: Path, load: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """What `load` of safetensors reads from a file. Raises `InputError` if it is missing or not whole."""
    try:
        return load(path)
    except FileNotFoundError:
        raise InputError(f"tensors not found: {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None


def read_config(folder: Path) -> Node:
    """The plain configuration that the checkpoint was trained with. Its targets are ours alone."""
    path = folder / _CONFIG
    if not folder.is_dir():
        raise InputError(f"checkpoint not found: {folder}")
    if not path.is_file():
        raise InputError(f"checkpoint configuration not found: {path}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # beside its own, PyYAML raises what its constructors stumble over
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    waiting, count = [config], 0
    while waiting:  # an alias stands for all that it names, and may name itself
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if (count := count + 1) > _VALUES:
            raise InputError(f"{path}: must have at most {_VALUES} values, got more")
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a mapping, got {type(config).__name__}")
    if config.get("format") != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT!r}, got {config.get('format')!r}")
    variant = config.setdefault("variant", "vl_jepa")
    if not isinstance(variant, str) or variant not in MODELS:
        raise InputError(f"{path}: variant must be one of {', '.join(MODELS)}, got {variant!r}")
    for key in ("model", "data" if variant == "llm_jepa" else "world"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: {key} must be a mapping, got {config.get(key)!r}")
    from jepa.data.json_lines import located

    for key, allowed in _TARGETS.items():
        with located(str(path)):
            check_node(config.get(key), key, allowed)
    return config


def read_stages(folder: Path) -> list[Node]:
    """The record of training beside the weights of a checkpoint: one of each stage."""
    from jepa.data.json_lines import read_json

    path = folder / "training.json"
    found = read_json(path, "training record")
    stages = found.get("stages") if isinstance(found, dict) else None
    if not isinstance(stages, list):
        raise InputError(f"{path}: stages must be a list, got {str(stages)[:80]}")
    for number, stage in enumerate(stages):
        for key, kind in _STAGE.items():
            if not isinstance(stage, dict) or not isinstance(value := stage.get(key), kind):
                raise InputError(f"{path}: stages[{number}] must be an object with {key}, got {str(stage)[:80]}")
            if key == "curve" and not all(isinstance(row, dict) for row in value):
                raise InputError(f"{path}: the curve of stages[{number}] must be a list of objects")
    return stages


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
    try:
        write(partial)
    except SafetensorError as error:  # the disk's errors in words alone
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        partial.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
    os.replace(partial, path)


# --- The hub. ---


def folder_of(checkpoint: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: itself, or that of `organisation/name` on the hub, downloaded or from its cache.

    `revision` is a branch, a tag or a commit. The environment names the hub (HF_ENDPOINT, HF_TOKEN).

    Raises:
        InputError: there is no such repository, it may not be read, it cannot be reached and is not in the cache, or it
            holds a pickle, which could run code.
    """
    if Path(checkpoint).exists() or not _REPOSITORY.fullmatch(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    with _errors_of(checkpoint, revision):
        cached = not _without_pickles(checkpoint, revision)
        patterns = list(_SHARED)
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=patterns, local_files_only=cached))


def push(folder: Path, to: str, private: bool = False, licence: str | None = None) -> str:
    """Uploads a checkpoint folder as the repository `to`, made where there is none; returns its address.

    A folder without a `README.md` gets a card first, with `licence` as the hub names it (apache-2.0).

    Raises:
        InputError: the folder is no checkpoint, `to` is no such name, or the hub refuses.
    """
    from huggingface_hub import HfApi

    config = read_config(folder)
    if not _REPOSITORY.fullmatch(to):
        raise InputError(f"to must be organisation/name, got {to!r}")
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(_model_card(folder, config, to, licence), encoding="utf-8")
    with _errors_of(to, None):
        address = HfApi().create_repo(to, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=to, folder_path=folder, allow_patterns=list(_SHARED), commit_message="Checkpoint")
    return str(address)


def _push_model(model: Any, config: Node, to: str, private: bool = False, licence: str | None = None) -> str:
    with TemporaryDirectory() as folder:
        save(model, config, folder)
        return push(Path(folder), to, private, licence)


def _model_card(folder: Path, config: Node, name: str, licence: str | None) -> str:
    """The card of a checkpoint: what it is, how to load it, its figures with their command, its base models."""
    variant = {"vl_jepa": "VL-JEPA", "llm_jepa": "LLM-JEPA", "token_vlm": "token-space VLM"}[config["variant"]]
    bases = sorted(set(_named(config, "pretrained")))
    head: dict[str, object] = {"license": licence} if licence else {}
    head |= {"library_name": "jepa", "tags": ["jepa", variant.lower()]}
    if hubs := [base for base in bases if _REPOSITORY.fullmatch(base)]:
        head["base_model"] = hubs
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---", f"# {name.rpartition('/')[2]}"]
    size = (folder / "model.safetensors").stat().st_size
    parts.append(f"A {variant} (`{config.get('name', variant)}`), {size / 1e6:.1f} MB of tensors, trained with `jepa`.")
    parts.append(f'```python\nimport jepa\n\nmodel = jepa.load("{name}")\n```')
    if bases:
        parts.append(f"Base models: {', '.join(f'`{base}`' for base in bases)}.")
    found = folder.parent / "evaluation" / "evaluation.json"
    if found.is_file():
        scores = json.loads(found.read_text(encoding="utf-8")).get("scores") or {}
        rows = [f"| {key} | {value:.4g} |" for key, value in _numbers(scores)]
        parts += f"Figures of `jepa evaluate checkpoint={name}`:", "\n".join(["| score | value |", "|---|---|", *rows])
    return "\n\n".join(parts) + "\n"


def _named(node: object, key: str) -> Iterator[str]:
    """Texts under a key anywhere in a tree of plain data."""
    if isinstance(node, Mapping):
        if isinstance(node.get(key), str):
            yield node[key]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _named(each, key)


def _numbers(scores: Mapping[str, object], before: str = "") -> Iterator[tuple[str, float]]:
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key} ")
        elif isinstance(value, int | float):
            yield f"{before}{key}", float(value)


def _without_pickles(name: str, revision: str | None) -> bool:
    """Refuses a repository that holds a pickle; False where none can be asked: what is cached was looked at before."""
    from huggingface_hub import HfApi, errors

    try:
        listed = [file.rfilename for file in HfApi().model_info(name, revision=revision).siblings or ()]
    except errors.HfHubHTTPError:
        raise
    except (errors.OfflineModeIsEnabled, errors.HTTPError):
        return False
    if pickles := [file for file in listed if file.endswith(_PICKLES)]:
        raise InputError(f"{name} must hold tensors and plain data only, got {pickles[0]}, which could run code")
    return True


@contextmanager
def _errors_of(name: str, revision: str | None) -> Iterator[None]:
    """The hub's errors in one line."""
    from huggingface_hub import errors

    place = f"{name}@{revision}" if revision else name
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{place} is gated: accept its terms on the hub, then give a token by HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"checkpoint not found: {place} is no folder, and no repository that you may read") from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise InputError(f"{place}: the hub says: {' '.join(str(error).split())}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise InputError(
            f"checkpoint not found: {place} is no folder and not in the hub's cache, and the hub cannot be reached"
        ) from error
