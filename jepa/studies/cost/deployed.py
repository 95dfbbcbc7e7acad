"""What a model on this machine is when it is deployed: its language model, and what it runs at every step of a stream.

A language model is known by its configuration, from which FLOPs follow in closed form. What a VL-JEPA or a token-space
baseline runs at every step may be any encoder and predictor: its parameters are counted, and its FLOPs as it runs once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa.checkpoint import load
from jepa.data.world import CAPTION_QUERIES
from jepa.decoders.language import LanguageDecoder
from jepa.decoders.prefix import PrefixDecoder
from jepa.errors import InputError
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.roles import SlotEncoder
from jepa.models.token_vlm import TokenVLM
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import Dimensions, from_hf_config
from jepa.studies.cost.estimate import CountedPart, DeployedParts, Perception


def read_parts(path: str) -> DeployedParts:
    """The parts of a model on this machine.

    Args:
        path: a `config.json` of Hugging Face transformers, a folder with one, or a checkpoint of a VL-JEPA, a
            token-space baseline or an LLM-JEPA.

    Raises:
        InputError: there is none; a language model is of a family that `from_hf_config` does not know, or its
            configuration lacks a dimension; or a VL-JEPA's parts cannot be priced (an X-Encoder that sees no frames).
    """
    place = Path(path)
    if (place / "config.yaml").is_file():
        return checkpoint_parts(load(place))
    file = place / "config.json" if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"deployed.model.path must be a checkpoint, a config.json or a folder with one, got {path}")
    return DeployedParts(_configured(file))


# Of these transformers has defaults, the dimensions of some model of the family. A configuration has to say its own; as
# one part of several, such as the text's beside a picture's, it may leave the second ones to its family.
_STATED = ("hidden_size", "intermediate_size", "num_hidden_layers")
_STATED_ALONE = ("num_attention_heads", "vocab_size")


def _configured(file: Path) -> Dimensions:
    from transformers import AutoConfig

    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(file)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: must be a configuration that transformers reads, got an error: {error}") from error
    stated, keys = (stated["text_config"], _STATED) if "text_config" in stated else (stated, _STATED + _STATED_ALONE)
    if missing := [key for key in keys if key not in stated]:
        raise InputError(f"{file} must state {', '.join(keys)}, got none for {', '.join(missing)}")
    return from_hf_config(config)


def checkpoint_parts(model: VLJEPA | TokenVLM | LLMJEPA) -> DeployedParts:
    """The parts of a model of this package.

    Of a VL-JEPA the X-Encoder and the Predictor run at every step and the Y-Decoder answers; the Y-Encoder is for
    training alone. Of a token-space baseline the X-Encoder and the projection of its states run at every step. An
    X-Encoder that encodes time slots apart encodes each once, whatever the overlap of the windows.

    Raises:
        InputError: as `read_parts`.
    """
    if isinstance(model, LLMJEPA):
        return DeployedParts(_language(model.language.lm))
    encoder, states = _encoder(model)
    query = [CAPTION_QUERIES[0]]
    if isinstance(model, TokenVLM):
        projecting = 2 * encoder.part.tokens * model.project.weight.numel()
        part = replace(
            encoder.part,
            parameters=encoder.part.parameters + _size(model.project),
            flops=encoder.part.flops + projecting,
        )
        perceiving = Perception({"encoder": part}, {"encoder": states.shape[1]}, encoder.most)
        limit = f"answers of more than its {model.max_length} tokens as if it wrote them"
        return DeployedParts(_language(model.language_model.lm), perceiving, states.shape[1], True, limit)
    tokens = states.shape[1] + model.tokenizers["predictor"].encode(query)[0].shape[1]
    predictor = CountedPart(_size(model.predictor), tokens, model.query_flops(query[0]))
    perceiving = Perception(
        {"encoder": encoder.part, "predictor": predictor},
        {"encoder": states.shape[1], "predictor": tokens},
        encoder.most,
    )
    decoder = model.y_decoder
    if isinstance(decoder, LanguageDecoder):
        answering = _language(decoder.lm, decoder)
    elif isinstance(decoder, PrefixDecoder):
        answering = _prefix_decoder(decoder)
    else:
        raise InputError(
            f"the y_decoder must be a PrefixDecoder or a LanguageDecoder to be priced, got {type(decoder).__name__}"
        )
    limit = f"input tokens, which its decoder takes none of, and texts of more than its {decoder.max_length} tokens"
    return DeployedParts(answering, perceiving, decoder.prefix, False, f"{limit}, as if it had positions for them")


@dataclass(frozen=True)
class _Encoder:
    part: CountedPart
    most: dict[str, float]  # tokens that it reads in a second of a stream, at most


def _encoder(model: VLJEPA | TokenVLM) -> tuple[_Encoder, torch.Tensor]:
    """What encoding a window, or each of its time slots, takes, and the states (1, N, D) of a blank window."""
    encoder = model.x_encoder
    if not encoder.size:
        raise InputError(f"the x_encoder must see frames to be priced, got {type(encoder).__name__}, which gets states")
    blank = torch.zeros(1, model.frames, encoder.size, encoder.size, 3, dtype=torch.uint8)
    with torch.no_grad():
        states = model.encode(blank)
    flops = model.encoding_flops()
    if not isinstance(encoder, SlotEncoder):
        return _Encoder(CountedPart(_size(encoder), states.shape[1], flops), {}), states
    patches = states.shape[1] * encoder.tubelet // model.frames
    most = {"encoder": patches * model.fps / encoder.tubelet}
    return _Encoder(CountedPart(_size(encoder), patches, flops), most), states


def _language(lm: Any, module: nn.Module | None = None) -> Dimensions:
    """Of a causal language model; `module` holds it, with parameters of its own, such as a projection."""
    return _whole(from_hf_config(lm.config), lm if module is None else module)


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


def _whole(dimensions: Dimensions, module: nn.Module) -> Dimensions:
    """With all parameters of the module: those in none of the matrices are `other_parameters`."""
    matrices = dimensions.parameters - dimensions.other_parameters
    return replace(dimensions, other_parameters=_size(module) - matrices)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
