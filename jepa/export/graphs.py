"""The graphs of a VL-JEPA's roles: what each computes, on which example it is traced, and which sizes are free.

B clips or texts, M slots, T slots of a window, F frames, S pixels a side, P states a slot, N states, D width,
E embedding dimensions, L tokens, H heads, K cached positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepa.decoders import PrefixDecoder
from jepa.errors import InputError
from jepa.models.roles import SlotEncoder
from jepa.models.vl_jepa import VLJEPA

_MOST = 1 << 16  # rows of a batch, slots, states


@dataclass(frozen=True)
class Graph:
    """A function of tensors that is exported as one file.

    `inputs` has an example of each input, in order; `free` the names of its sizes that may change, by place, and
    `limits` the least and the largest of each.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]]
    limits: dict[str, tuple[int, int]]
    outputs: tuple[str, ...]

    def program(self) -> torch.export.ExportedProgram:
        """The function, traced. Raises `InputError` if it cannot be."""
        sizes = {name: torch.export.Dim(name, min=least, max=most) for name, (least, most) in self.limits.items()}
        shapes = tuple({place: sizes[name] for place, name in self.free[key].items()} for key in self.inputs)
        try:
            with torch.no_grad():
                return torch.export.export(self.module, tuple(self.inputs.values()), dynamic_shapes=(shapes,))
        except Exception as error:  # whatever the tracer stumbles over
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"{self.name} cannot be exported: {reason}") from error


class _Function(nn.Module):
    """A function of a module's tensors, as a module."""

    def __init__(self, owner: Any, function: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def graphs_of(model: VLJEPA, clips: Tensor, queries: list[str], texts: list[str]) -> Iterator[Graph]:
    """The graphs of all roles of a model in evaluation mode, traced on B >= 2 clips, queries and texts.

    Raises:
        InputError: a Y-Decoder other than a `PrefixDecoder`, or an X-Encoder of states that were computed before.
    """
    decoder, encoder = model.y_decoder, model.x_encoder
    predictor, y_encoder = model.get_submodule("predictor"), model.get_submodule("y_encoder")
    if not isinstance(decoder, PrefixDecoder):
        raise InputError(f"the Y-Decoder must be a PrefixDecoder to be exported, got a {type(decoder).__name__}")
    if not encoder.size:
        raise InputError(f"the X-Encoder must take frames to be exported, got a {type(encoder).__name__}")
    rows, some = {"B": (1, _MOST)}, (1, _MOST)
    with torch.no_grad():
        states = model.encode(clips)
        latents = model.predict(states, queries)
    if isinstance(encoder, SlotEncoder):
        frames = clips.unflatten(1, (-1, encoder.tubelet)).flatten(0, 1)
        with torch.no_grad():
            slots = encoder.encode_slots(clips)
        yield Graph(
            "x_encoder",
            _Function(encoder, lambda frames: encoder.encode_slots(frames)[:, 0]),
            {"frames": frames},
            {"frames": {0: "M"}},
            {"M": some},
            ("slots",),
        )
        time = _Function(encoder, encoder.add_time)
        free = {"slots": {0: "B", 1: "T"}}
        yield Graph("x_encoder_time", time, {"slots": slots}, free, {**rows, "T": some}, ("states",))
    else:
        whole = _Function(encoder, model.get_submodule("x_encoder").forward)
        yield Graph("x_encoder", whole, {"frames": clips}, {"frames": {0: "B"}}, rows, ("states",))
    ids, mask = model.tokenizers["predictor"].encode(queries)
    of_text = {"ids": {0: "B", 1: "L"}, "mask": {0: "B", 1: "L"}}
    yield Graph(
        "predictor",
        _Function(predictor, predictor.forward),
        {"states": states, "ids": ids, "mask": mask},
        {"states": {0: "B", 1: "N"}, **of_text},
        {**rows, "N": some, "L": (1, most_tokens(model, "predictor"))},
        ("latents",),
    )
    ids, mask = model.text_ids(texts)
    longest = {**rows, "L": (1, most_tokens(model, "y_encoder"))}
    embedding = _Function(y_encoder, y_encoder.forward)
    yield Graph("y_encoder", embedding, {"ids": ids, "mask": mask}, of_text, longest, ("embeddings",))
    # Sizes that are 0 or 1 would be taken for constants: the example has others. What runs is 0 or 1 of each.
    cache = latents.new_zeros(len(decoder.blocks), len(latents), decoder.heads, 3, decoder.width // decoder.heads)
    yield Graph(
        "y_decoder",
        _Function(decoder, decoder.extend),
        {"latents": latents[:, None].expand(-1, 2, -1), "ids": ids.new_zeros(len(latents), 3), "keys": cache}
        | {"values": cache.clone()},
        {"latents": {0: "B", 1: "N"}, "ids": {0: "B", 1: "L"}, "keys": {1: "B", 3: "K"}, "values": {1: "B", 3: "K"}},
        {**rows, "N": (0, 2), "L": (0, decoder.max_length), "K": (0, decoder.prefix + decoder.max_length)},
        ("logits", "new_keys", "new_values"),
    )


def most_tokens(model: VLJEPA, role: str) -> int:
    """The longest text that a role takes, in tokens."""
    limits = (getattr(each, "max_length", _MOST) for each in (model.get_submodule(role), model.tokenizers[role]))
    return int(min(*limits, _MOST))
