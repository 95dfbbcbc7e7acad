"""What fills the roles of the models, and their parameters by role.

B samples, F frames, S pixels a side, T time slots, P states a slot, N states, D and E widths, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Part(Protocol):
    """An `nn.Module`."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


class XEncoder(Part, Protocol):
    """Frames (B, F, S, S, 3) uint8 -> states (B, N, D); F is a multiple of `tubelet`, S is `size`, D is `width`."""

    size: int
    tubelet: int
    width: int

    def __call__(self, frames: Tensor) -> Tensor: ...


@runtime_checkable
class SlotEncoder(Protocol):
    """An `XEncoder` that encodes a slot of `tubelet` frames without regard to the others: windows can share slots.

    Frames (B, F, S, S, 3) uint8 -> slots (B, T, P, D); those of a window, with their time added -> states (B, N, D).
    """

    def encode_slots(self, frames: Tensor) -> Tensor: ...

    def add_time(self, slots: Tensor) -> Tensor: ...


class Predictor(Part, Protocol):
    """States (B, N, D), query tokens (B, L) and their mask, true at real ones -> (B, E) float32, L2-normalised."""

    def __call__(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor: ...


class YEncoder(Part, Protocol):
    """Tokens (B, L) and their mask, true at real ones -> (B, E) float32, L2-normalised.

    It may have `prepared(texts)`, the texts as its tokenizer should see them: `SentenceEncoder` puts its prompt first.
    """

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor: ...


class YDecoder(Part, Protocol):
    """Embeddings (B, E) and the tokens (B, L) of known texts -> logits (B, L, V); the rest as `PrefixDecoder` says.

    A `LanguageDecoder` is one, but for its operations, which `jepa.models.costs` knows.
    """

    max_length: int

    def __call__(self, latents: Tensor, ids: Tensor) -> Tensor: ...

    def generate(self, latents: Tensor, eos_id: int) -> list[list[int]]: ...

    def flops(self, tokens: int) -> int: ...

    def cache_bytes(self, tokens: int) -> int: ...


class TextTokenizer(Protocol):
    """Texts to ids and masks (B, L), right-padded, and back; `encode_closed` adds the end token."""

    @property
    def eos_id(self) -> int: ...

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]: ...

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]: ...

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]: ...


def role_parameters(roles: Mapping[str, Part]) -> list[dict[str, Any]]:
    """Total and trainable parameters of the module that fills each role: `{role, total, trainable, modules}`."""
    return [
        {
            "role": role,
            "total": sum(p.numel() for p in module.parameters()),
            "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "modules": getattr(module, "description", type(module).__name__),
        }
        for role, module in roles.items()
    ]
