"""Whether exported graphs say what the model says: both run on the same clips and texts.

B clips, L tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa.decoders import PrefixDecoder
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.runtime import ExportedModel


@dataclass(frozen=True)
class RoleParity:
    """The largest difference of a role's outputs, and their largest value, both without sign.

    >>> RoleParity.of([(np.array([1.0, -3.0]), np.array([1.5, -3.0]))])
    RoleParity(difference=0.5, largest=3.0)
    """

    difference: float
    largest: float

    @classmethod
    def of(cls, pairs: list[tuple[np.ndarray, np.ndarray]]) -> RoleParity:
        """Of outputs of the graphs and the model's own."""
        for ours, theirs in pairs:
            if ours.shape != theirs.shape:
                raise InputError(f"graphs must give the model's shapes, {theirs.shape}, got {ours.shape}")
        gaps = [float(np.abs(ours.astype(np.float64) - theirs).max()) for ours, theirs in pairs]
        return cls(max(gaps), max(float(np.abs(theirs).max()) for _, theirs in pairs))


@dataclass(frozen=True)
class Parity:
    """The differences by role, and how many of the clips' texts are equal, end to end.

    >>> Parity({"predictor": RoleParity(1e-6, 0.3)}, texts=4, equal_texts=4).worst
    ('predictor', 1e-06)
    """

    roles: dict[str, RoleParity]
    texts: int
    equal_texts: int

    @property
    def worst(self) -> tuple[str, float]:
        """The role that differs most, and by how much; a difference that is no number counts most."""
        found = {role: each.difference for role, each in self.roles.items()}
        role = max(found, key=lambda name: np.inf if np.isnan(found[name]) else found[name])
        return role, found[role]


@torch.no_grad()
def measure_parity(
    model: VLJEPA, exported: ExportedModel, clips: Tensor, queries: list[str], texts: list[str]
) -> Parity:
    """Runs both on clips (B, F, S, S, 3) uint8 with a query each, and on texts: all in one batch, and the first alone.

    Each role gets the model's own input. Logits, pass by pass with the cache, are compared with those of whole texts.
    """
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        role: [] for role in ("x_encoder", "predictor", "y_encoder", "y_decoder")
    }
    for count in (len(clips), 1):
        states = model.encode(clips[:count])
        pairs["x_encoder"].append((exported.encode(clips[:count].numpy()), states.numpy()))
        latents = model.predict(states, queries[:count])
        pairs["predictor"].append((exported.predict(states.numpy(), queries[:count]), latents.numpy()))
        pairs["y_encoder"].append((exported.embed(texts[:count]), model.embed(texts[:count]).numpy()))
        pairs["y_decoder"].append(_logits(model, exported, latents))
    own = model.decode(model.predict(model.encode(clips), queries))
    told = exported.decode(exported.predict(exported.encode(clips.numpy()), queries))
    same = sum(one.text == other.text for one, other in zip(own, told, strict=True))
    return Parity({role: RoleParity.of(found) for role, found in pairs.items()}, len(told), same)


def _logits(model: VLJEPA, exported: ExportedModel, latents: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, L, V) of the model's own greedy tokens: through the graph's cache, and of the whole text at once."""
    decoder, end = model.y_decoder, model.tokenizers["y_decoder"].eos_id
    assert isinstance(decoder, PrefixDecoder)  # as `graphs_of` asks
    rows = decoder.generate(latents, end)
    length = min(max(map(len, rows)) + 1, decoder.max_length)
    ids = torch.tensor([[*row, *[end] * length][:length] for row in rows])
    shape = len(decoder.blocks), len(latents), decoder.heads, 0, decoder.width // decoder.heads
    keys = values = np.zeros(shape, np.float32)
    given, token, found = latents[:, None].numpy(), np.zeros((len(latents), 0), np.int64), []
    for place in range(length):
        logits, keys, values = exported.run("y_decoder", given, token, keys, values)
        found.append(logits)
        given, token = given[:, :0], ids[:, place : place + 1].numpy()
    return np.stack(found, axis=1), decoder(latents, ids).numpy()
