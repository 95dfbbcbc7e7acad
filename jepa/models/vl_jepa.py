"""VL-JEPA (arXiv 2512.10942): the embedding of the answer is predicted, and turned into text only when asked for.

B clips, F frames a clip, S pixels a side, N states, D width, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from jepa.data.tokenizer import Tokenizer
from jepa.encoders.vision import given_states
from jepa.errors import InputError
from jepa.models.roles import (
    Predictor,
    TextTokenizer,
    XEncoder,
    YDecoder,
    YEncoder,
    greedy_texts,
    role_parameters,
)
from jepa.models.windows import WindowedModel
from jepa.operations import OperationLedger
from jepa.predictors.experts import active_parameters
from jepa.selective import Decoded, SelectiveEncoding

ROLES = {"x_encoder": "X-Encoder", "predictor": "Predictor", "y_encoder": "Y-Encoder", "y_decoder": "Y-Decoder"}
TEXT_ROLES = ("predictor", "y_encoder", "y_decoder")


class VLJEPA(WindowedModel):
    """The four roles together: X-Encoder, Predictor, Y-Encoder, Y-Decoder.

    Args:
        tokenizer: of the parts that have none of their own.
        frames: frames of a window.
        fps: frames a second.
        tokenizers: those of pretrained text parts, by `TEXT_ROLES`.

    Raises:
        InputError: unless `frames` is a multiple of the X-Encoder's tubelet and both are >= 1, and `tokenizers` has
            no other names.
    """

    tokenizer_type = Tokenizer

    def __init__(
        self,
        x_encoder: XEncoder,
        predictor: Predictor,
        y_encoder: YEncoder,
        y_decoder: YDecoder,
        tokenizer: Tokenizer,
        frames: int,
        fps: int,
        tokenizers: Mapping[str, TextTokenizer] | None = None,
    ) -> None:
        super().__init__(x_encoder, frames, fps)
        own = dict(tokenizers or {})
        if unknown := own.keys() - set(TEXT_ROLES):
            raise InputError(f"tokenizers must be of {', '.join(TEXT_ROLES)}, got {', '.join(sorted(unknown))}")
        self.tokenizers: dict[str, TextTokenizer] = {role: own.get(role, tokenizer) for role in TEXT_ROLES}
        self.predictor, self.y_encoder, self.y_decoder = predictor, y_encoder, y_decoder
        self.tokenizer = tokenizer
        self._query_flops: dict[str, int] = {}

    def encode(self, frames: Tensor) -> Tensor:
        """X-Encoder: (B, F, S, S, 3) uint8 -> states S_X (B, N, D).

        With F = 1 these are pictures, each repeated to fill a window. States (B, N, D) that the same X-Encoder computed
        before pass as they are.

        Raises:
            InputError: states in place of frames while the X-Encoder is trained: no gradient would reach it.
        """
        frames = frames.to(self.device)
        if frames.ndim == 3:
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.x_encoder.parameters()):
                raise InputError("states computed before need a frozen X-Encoder, got one that is trained")
            return given_states(frames, self.x_encoder.width)
        if frames.ndim == 5 and frames.shape[1] == 1:
            frames = frames.expand(-1, self.frames, -1, -1, -1)
        return self.x_encoder(frames)

    def predict(self, states: Tensor, queries: Sequence[str]) -> Tensor:
        """Predictor: states (B, N, D) and B queries -> predicted embeddings (B, E), L2-normalised."""
        ids, mask = self.tokenizers["predictor"].encode(queries)
        return self.predictor(states, ids.to(self.device), mask.to(self.device))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Y-Encoder: B texts -> embeddings S_Y (B, E), L2-normalised."""
        ids, mask = self.tokenizers["y_encoder"].encode(texts)
        return self.y_encoder(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def embed_all(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Embeddings (N, E) of any number of texts, in batches, on the CPU and without gradients."""
        batches = (texts[i : i + batch_size] for i in range(0, len(texts), batch_size))
        return torch.cat([self.embed(batch).cpu() for batch in batches])

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Y-Decoder: embeddings (B, E) -> greedy texts, each with its number of tokens (the end token counted).

        A token costs one forward pass, so both numbers are equal.
        """
        tokenizer = self.tokenizers["y_decoder"]
        return greedy_texts(self.y_decoder, latents.to(self.device), tokenizer, tokenizer.eos_id)

    @torch.no_grad()
    def stream(
        self,
        frames: Iterable[np.ndarray],
        step_rate: float,
        query: str,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Latents of a sliding window over a stream, as frames arrive: `windows`, and the Predictor at every step.

        Args:
            frames, step_rate, ledger, selection: as for `windows`; the ledger counts one predictor call a step, too.
            query: what is asked at every step.

        Yields:
            Latents (T, E) float32, L2-normalised, and the centres (T,) float64 of their windows in seconds. A latent
            can be known `window / 2` seconds after its time.
        """
        ledger = ledger if ledger is not None else OperationLedger()
        for states, times in self.windows(frames, step_rate, ledger, selection):
            yield self.predict_steps(states, query, ledger), times

    @torch.no_grad()
    def predict_steps(self, states: Tensor, query: str, ledger: OperationLedger) -> np.ndarray:
        """Latents (T, E) float32, L2-normalised, of T windows' states (T, N, D), each counted as a predictor call."""
        with ledger.timed("predictor"):
            latents: np.ndarray = self.predict(states, [query] * len(states)).cpu().numpy()
        self._count(ledger, "predictor", self.predictor, len(states), self.query_flops(query))
        return latents

    def query_flops(self, query: str) -> int:
        """FLOPs of predicting one embedding under `query`, alone and so without padding."""
        if query not in self._query_flops:  # asked at every step of a stream: no tokenizer then
            length = self.tokenizers["predictor"].encode([query])[0].shape[1]
            if ("query", length) not in self._flops:
                with torch.no_grad():
                    states = self.encode(self._blank(self.frames))
                self._counted(("query", length), lambda: self.predict(states, [query]))
            self._query_flops[query] = self._flops["query", length]
        return self._query_flops[query]

    def text_flops(self, text: str) -> int:
        """FLOPs of embedding a text by the Y-Encoder, alone and so without padding."""
        length = self.tokenizers["y_encoder"].encode([text])[0].shape[1]
        return self._counted(("text", length), lambda: self.embed([text]))

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Parameters of each role: `{role, total, trainable, active, modules}`, `active` those that a token uses."""
        rows = []
        for name, role in ROLES.items():
            module = self.get_submodule(name)
            described = getattr(module, "description", type(module).__name__)
            rows.append(role_parameters(role, module, described) | {"active": active_parameters(module)})
        return rows


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Switches the timm blocks between the fused kernel and matmul-softmax-matmul (faster in bf16 on a CPU)."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = fused  # type: ignore[misc]
