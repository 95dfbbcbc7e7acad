"""Deployed models and chips: those of conf/, checkpoints of this package, and configurations of transformers.

A language model is known by its configuration, from which FLOPs follow in closed form. The encoder and the predictor
of a checkpoint may be of any kind: their parameters are counted, and their FLOPs as they run once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from jepa.build import build, build_as, nearest
from jepa.checkpoint import load
from jepa.config import C, validate
from jepa.data.world import CAPTION_QUERIES
from jepa.decoders.language import LanguageDecoder
from jepa.decoders.prefix import PrefixDecoder
from jepa.errors import InputError
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.roles import SlotEncoder
from jepa.models.token_vlm import TokenVLM
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import Dimensions, from_hf_config
from jepa.studies.configs import DeployedModelConfig, HardwareConfig
from jepa.studies.cost.estimate import CountedPart, DeployedModel, PerceptionPart

# --- The files of conf/hardware and conf/deployed.


def options(group: str) -> list[str]:
    """The names in a folder of conf/, but for `config`, which needs a path."""
    names = (entry.name for entry in files("jepa.conf").joinpath(group).iterdir())
    return sorted({name.removesuffix(".yaml") for name in names if name.endswith(".yaml")} - {"config"})


def _read(group: str, name: str, schema: type[C]) -> C:
    if name not in (names := options(group)):
        close = ", ".join(nearest(name, names) or names)
        raise InputError(f"there is no {group} {name!r}; nearest valid: {close}")
    text = files("jepa.conf").joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
    return validate(yaml.safe_load(text), schema)


def read_hardware(name: str) -> HardwareConfig:
    """The datasheet of a chip in conf/hardware. Raises InputError if there is none of that name.

    >>> read_hardware("h100").bandwidth.value
    3350000000000.0
    """
    return _read("hardware", name, HardwareConfig)


def read_model(name: str) -> DeployedModel:
    """A model of conf/deployed. Raises InputError if there is none of that name.

    >>> read_model("llama_3_2_1b").parameters
    1235814400
    """
    return model_of(_read("deployed", name, DeployedModelConfig))


def model_of(config: DeployedModelConfig) -> DeployedModel:
    """A model by its configuration. A checkpoint brings its own perception. Raises InputError for another target."""
    built = build(config.model)
    if isinstance(built, Dimensions):
        parts = {}
        for name, part in (config.perception or {}).items():
            size = build_as(Dimensions, f"deployed.perception.{name}.dimensions", part.dimensions)
            parts[name] = PerceptionPart(size, part.tokens)
        built = DeployedModel(
            config.name, built, parts, config.input_per_step, config.every_step, assumed=config.assumed
        )
    if not isinstance(built, DeployedModel):
        raise InputError(f"deployed.model._target_ must build Dimensions or a model, got {type(built).__name__}")
    return replace(built, name=config.name, measured=config.measured, source=config.source, as_of=config.as_of)


# --- Models on this machine.


def read_parts(path: str) -> DeployedModel:
    """A model on this machine: a checkpoint of this package, a `config.json` of transformers, or a folder with one.

    Raises InputError if there is none, if its dimensions cannot be known, or as `checkpoint_parts`.
    """
    place = Path(path)
    if (place / "config.yaml").is_file():
        return checkpoint_parts(load(place))
    file = place / "config.json" if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"deployed.model.path must be a checkpoint, a config.json or a folder with one, got {path}")
    return DeployedModel(path, _configured(file))


# For these keys transformers has defaults: the dimensions of some model of the family. A configuration has to state
# its own. As one part of several, such as the text's beside a picture's, it may leave the second ones to its family.
_STATED = ("hidden_size", "intermediate_size", "num_hidden_layers")
_STATED_ALONE = ("num_attention_heads", "vocab_size")


def _configured(file: Path) -> Dimensions:
    from transformers import AutoConfig

    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(file, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: must be a configuration that transformers reads, got an error: {error}") from error
    stated, keys = (stated["text_config"], _STATED) if "text_config" in stated else (stated, _STATED + _STATED_ALONE)
    if missing := [key for key in keys if key not in stated]:
        raise InputError(f"{file} must state {', '.join(keys)}, got none for {', '.join(missing)}")
    return from_hf_config(config)


def checkpoint_parts(model: VLJEPA | TokenVLM | LLMJEPA) -> DeployedModel:
    """The parts of a model of this package; a Y-Encoder is for training alone.

    In a VL-JEPA the X-Encoder and the Predictor run at every step and the Y-Decoder answers. In a token-space baseline
    the X-Encoder and the projection of its states run at every step. An X-Encoder that encodes time slots apart
    encodes each slot once. Raises InputError for a decoder or an X-Encoder that cannot be priced.
    """
    if isinstance(model, LLMJEPA):
        return DeployedModel("", _whole(from_hf_config(model.language.lm.config), model.language.lm))
    projecting = model.project if isinstance(model, TokenVLM) else None
    encoder, states = _encoder(model, projecting)
    if isinstance(model, TokenVLM):
        answering = _whole(from_hf_config(model.language_model.lm.config), model.language_model.lm)
        limit = f"answers of more than its {model.max_length} tokens as if it wrote them"
        return DeployedModel("", answering, {"encoder": encoder}, states, every_step=True, assumed=limit)
    query = CAPTION_QUERIES[0]
    tokens = states + model.tokenizers["predictor"].encode([query])[0].shape[1]
    predictor = CountedPart(_size(model.predictor), tokens, model.query_flops(query))
    decoder = model.y_decoder
    if isinstance(decoder, LanguageDecoder):
        answering = _whole(from_hf_config(decoder.lm.config), decoder)
    elif isinstance(decoder, PrefixDecoder):
        answering = _prefix_decoder(decoder)
    else:
        kinds = "a PrefixDecoder or a LanguageDecoder"
        raise InputError(f"the y_decoder must be {kinds} to be priced, got {type(decoder).__name__}")
    parts = {"encoder": encoder, "predictor": PerceptionPart(predictor, tokens)}
    limit = (
        f"input tokens, which its decoder takes none of, and texts of more than its {decoder.max_length} tokens, as "
        "if it had positions for them"
    )
    return DeployedModel("", answering, parts, decoder.prefix, assumed=limit)


def _encoder(model: VLJEPA | TokenVLM, project: torch.nn.Linear | None) -> tuple[PerceptionPart, int]:
    """The X-Encoder, with a projection of its states, on a window or a time slot; and the states of a window."""
    encoder = model.x_encoder
    if not encoder.size:
        raise InputError(f"the x_encoder must see frames to be priced, got {type(encoder).__name__}, which gets states")
    blank = torch.zeros(1, model.frames, encoder.size, encoder.size, 3, dtype=torch.uint8)
    with torch.no_grad():
        states: int = model.encode(blank).shape[1]
    tokens, most = states, None
    if isinstance(encoder, SlotEncoder):
        tokens = states * encoder.tubelet // model.frames
        most = tokens * model.fps / encoder.tubelet
    parameters, flops = _size(encoder), model.encoding_flops()
    if project is not None:
        parameters, flops = parameters + _size(project), flops + 2 * tokens * project.weight.numel()
    return PerceptionPart(CountedPart(parameters, tokens, flops), states, most), states


def _prefix_decoder(decoder: PrefixDecoder) -> Dimensions:
    head = decoder.width // decoder.heads
    found = Dimensions(
        layers=len(decoder.blocks),
        width=decoder.width,
        heads=decoder.heads,
        kv_heads=decoder.heads,
        key_width=head,
        value_width=head,
        feed_forward=4 * decoder.width,
        gated=False,
        vocabulary=decoder.tokens.num_embeddings,
        tied=True,
    )
    return _whole(found, decoder)


def _whole(dimensions: Dimensions, module: Any) -> Dimensions:
    """With all parameters of the module: those in none of the matrices are `other_parameters`."""
    matrices = dimensions.parameters - dimensions.other_parameters
    return replace(dimensions, other_parameters=_size(module) - matrices)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
