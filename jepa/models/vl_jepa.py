"""VL-JEPA (arXiv 2512.10942): the embedding of the answer is predicted, and turned into text only when asked for.

B clips, F frames a clip, S pixels a side, N states, D width, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from tqdm import tqdm

from jepa.data.tokenizer import Tokenizer
from jepa.encoders.sentence import SentenceEncoder
from jepa.errors import InputError, check_int
from jepa.models.costs import greedy_texts, remembered, text_cost
from jepa.models.roles import Predictor, TextTokenizer, XEncoder, YDecoder, YEncoder, role_parameters
from jepa.models.windows import WindowedModel
from jepa.operations import OperationLedger, count_flops, timed_together
from jepa.predictors.experts import active_parameters
from jepa.selective import Decoded, Readout, SelectiveEncoding

ROLES = {"x_encoder": "X-Encoder", "predictor": "Predictor", "y_encoder": "Y-Encoder", "y_decoder": "Y-Decoder"}
TEXT_ROLES = ("predictor", "y_encoder", "y_decoder")


class VLJEPA(WindowedModel):
    """The four roles together; a window has `frames` frames at `fps` frames a second.

    `tokenizers` has those of pretrained text parts, by `TEXT_ROLES`; `tokenizer` is that of all others. A Y-Decoder
    with an operation that `count_flops` cannot count is refused.

    >>> from jepa.decoders import PrefixDecoder
    >>> from jepa.encoders import FrameViT, TextTransformer
    >>> from jepa.predictors import QueryPredictor
    >>> tokenizer = Tokenizer.train(["a red bar moves"], 300)
    >>> parts = QueryPredictor(300, 32, 16, width=32), TextTransformer(300, 16, width=32), PrefixDecoder(300, 16)
    >>> vision = FrameViT("vit_tiny_patch16_224", size=32, tubelet=2, embed_dim=32, depth=1, num_heads=2)
    >>> model = VLJEPA(vision, *parts, tokenizer, frames=4, fps=8)
    >>> states = model.encode(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8))
    >>> model.predict(states, ["what happens?", "what colour?"]).shape
    torch.Size([2, 16])
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
        self._pooled: dict[str, Tensor] = {}
        if not any(parameter.is_meta for parameter in y_decoder.parameters()):
            text_cost(y_decoder, 1)  # what cannot be counted is refused here, not after training

    def predict(self, states: Tensor, queries: Sequence[str]) -> Tensor:
        """Predictor: states (B, N, D) and B queries -> predicted embeddings (B, E), L2-normalised."""
        ids, mask = self.tokenizers["predictor"].encode(queries)
        return self.predictor(states, ids.to(self.device), mask.to(self.device))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Y-Encoder: B texts -> embeddings S_Y (B, E), L2-normalised."""
        if self._pooled and all(text in self._pooled for text in texts):
            encoder: Any = self.y_encoder
            return encoder(torch.stack([self._pooled[text] for text in texts]).to(self.device), None)
        return self.y_encoder(*(each.to(self.device) for each in self.text_ids(texts)))

    def text_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and their mask of B texts as the Y-Encoder reads them: after its prompt, if it has one."""
        prepared = getattr(self.y_encoder, "prepared", list)
        return self.tokenizers["y_encoder"].encode(prepared(texts))

    def embed_all(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Embeddings (N, E) of any number of texts, in batches of like length, on the CPU and without gradients."""
        return _in_batches(self.embed, texts, batch_size)

    def pool_all(self, texts: Sequence[str], batch_size: int = 128) -> Tensor:
        """What a frozen `SentenceEncoder` makes of texts before its head, (N, D) on the CPU: see `hold_pooled`."""
        encoder = self.y_encoder
        if not isinstance(encoder, SentenceEncoder) or not encoder.frozen:
            raise InputError(f"y_encoder must be a frozen SentenceEncoder, got a {type(encoder).__name__}")

        def pool(some: Sequence[str]) -> Tensor:
            return encoder.pooled(*(part.to(self.device) for part in self.text_ids(some)))

        return _in_batches(pool, texts, batch_size, shown="states of texts")

    @contextmanager
    def hold_pooled(self, texts: Sequence[str], pooled: Tensor) -> Iterator[None]:
        """Within, these texts are embedded from what `pool_all` gave of them: the frozen encoder runs once for each."""
        self._pooled = dict(zip(texts, pooled, strict=True))
        try:
            yield
        finally:
            self._pooled = {}

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Y-Decoder: embeddings (B, E) -> greedy texts; each token, the end included, is a forward pass."""
        tokenizer = self.tokenizers["y_decoder"]
        return greedy_texts(self.y_decoder, latents.to(self.device), tokenizer.decode, tokenizer.eos_id)

    @torch.no_grad()
    def likelihood(self, latent: np.ndarray, text: str) -> tuple[float, int]:
        """Mean log-probability (nats a token, the end included) of a text under a latent (E,), and the pass's FLOPs."""
        tokenizer = self.tokenizers["y_decoder"]
        ids = tokenizer.encode_closed([text])[0][:, : self.y_decoder.max_length].to(self.device)
        logits = self.y_decoder(torch.from_numpy(latent)[None].to(self.device), ids)
        chosen = logits.log_softmax(-1).gather(-1, ids[..., None])
        return float(chosen.mean()), self._likelihood_flops(len(latent), ids.shape[1])

    @remembered
    def _likelihood_flops(self, width: int, tokens: int) -> int:
        ids = torch.zeros(1, tokens, dtype=torch.long, device=self.device)
        return count_flops(lambda: self.y_decoder(torch.zeros(1, width, device=self.device), ids)).total

    @torch.no_grad()
    def stream(
        self,
        frames: Iterable[np.ndarray],
        step_rate: float,
        query: str,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`windows` of a stream, and the Predictor, asked `query`, at every step; the ledger counts its calls, too.

        Yields latents (T, E) float32, L2-normalised, and the centres (T,) float64 of their windows in seconds. A latent
        can be known `window / 2` seconds after its time.
        """
        ledger = OperationLedger() if ledger is None else ledger
        for states, times in self.windows(frames, step_rate, ledger, selection):
            yield self.predict_steps(states, query, ledger), times

    def predict_steps(self, states: Tensor, query: str, ledger: OperationLedger) -> np.ndarray:
        """Latents (T, E) float32, L2-normalised, of T windows' states (T, N, D), each counted as a predictor call."""
        return self.predict_together([(states, query, ledger)])[0]

    @torch.no_grad()
    def predict_together(self, streams: Sequence[tuple[Tensor, str, OperationLedger]]) -> list[np.ndarray]:
        """`predict_steps` of several streams, each with its own query and ledger, in one call of the Predictor."""
        if not streams:
            return []
        with timed_together("predictor", [ledger for _, _, ledger in streams]):
            queries = [query for states, query, _ in streams for _ in states]
            latents: np.ndarray = self.predict(torch.cat([states for states, _, _ in streams]), queries).cpu().numpy()
        for states, query, ledger in streams:
            self._count(ledger, "predictor", self.predictor, len(states), self.query_flops(query))
        ends = np.cumsum([len(states) for states, _, _ in streams])[:-1]
        return np.split(latents, ends)

    def query_flops(self, query: str) -> int:
        """FLOPs of predicting one embedding under `query`, alone and so without padding."""
        return self.role_flops("predictor", self.tokenizers["predictor"].encode([query])[0].shape[1])

    def text_flops(self, text: str) -> int:
        """FLOPs of embedding a text by the Y-Encoder, alone and so without padding."""
        return self.role_flops("y_encoder", self.text_ids([text])[0].shape[1])

    @remembered
    def role_flops(self, role: str, length: int) -> int:
        """FLOPs of `predictor` or `y_encoder` for one text of `length` tokens."""
        ids = torch.zeros(1, length, dtype=torch.long, device=self.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if role == "y_encoder":
            return count_flops(lambda: self.y_encoder(ids, mask)).total
        states = self.encode(self._blank(self.frames))
        return count_flops(lambda: self.predictor(states, ids, mask)).total

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Parameters of each role: `{role, total, trainable, active, modules}`, `active` those that a token uses."""
        roles = {name: self.get_submodule(part) for part, name in ROLES.items()}
        rows = role_parameters(roles)
        return [row | {"active": active_parameters(roles[row["role"]])} for row in rows]


@torch.no_grad()
def _in_batches(
    encode: Callable[[Sequence[str]], Tensor], texts: Sequence[str], batch_size: int, shown: str | None = None
) -> Tensor:
    """Rows (N, D) of N texts, on the CPU; those of like length together, the longest first. `shown`: on a bar."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    starts = tqdm(range(0, len(order), batch_size), desc=shown, unit="batch", disable=shown is None)
    batches = (order[i : i + batch_size] for i in starts)
    found = torch.cat([encode([texts[row] for row in batch]).cpu() for batch in batches])
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def summary(states: Tensor) -> np.ndarray:
    """Mean, maximum and standard deviation over the N states of T windows (T, N, D): (T, 3 D) float32."""
    states = states.float()
    parts = states.mean(1), states.amax(1), states.std(1, correction=0)
    found: np.ndarray = torch.cat(parts, dim=1).cpu().numpy()
    return found


def summary_flops(states: Tensor) -> int:
    """FLOPs of the `summary` of T windows (T, N, D): an operation an element for mean and maximum each, three more."""
    return 5 * states.numel()


class PredictorOnDemand:
    """The X-Encoder at every step of a stream, the Predictor for a step when the policy `OnDemand` asks for it.

    `model` is in evaluation mode. The policy watches what the `readout` makes of a step's states, a detector call of
    the ledger. The states of the newest `held` steps are held: as many as `OnDemand` may ask for, and those that its
    policy lets pass before it closes a segment. An example is in `docs/concepts.md`.
    """

    def __init__(
        self, model: VLJEPA, query: str, readout: Readout, ledger: OperationLedger | None = None, held: int = 32
    ) -> None:
        self.model, self.query, self.readout = model, query, readout
        self.ledger = OperationLedger() if ledger is None else ledger
        self.held = check_int("held", held, 1)
        self._windows: dict[int, Tensor] = {}  # states (N, D) of the newest steps
        self._steps = 0

    def stream(
        self, frames: Iterable[np.ndarray], step_rate: float, selection: SelectiveEncoding | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What the policy watches (T, E) of a stream, and times (T,), as frames arrive: see `VLJEPA.windows`."""
        self._windows, self._steps = {}, 0
        for states, times in self.model.windows(frames, step_rate, self.ledger, selection):
            for step in [step for step in self._windows if step < self._steps - self.held]:
                del self._windows[step]
            self._windows.update(enumerate(states, start=self._steps))
            self._steps += len(states)
            with timed_together("detector", [self.ledger]):
                watched = self.readout(summary(states))
            flops = summary_flops(states) + len(states) * self.readout.flops
            self.ledger.count("detector", calls=len(states), flops=flops)
            yield watched, times

    def predict(self, step: int) -> np.ndarray:
        """The predicted embedding (E,), float32 of unit norm, of step number `step`; `InputError` if it is not held."""
        if step not in self._windows:
            raise InputError(f"step must be one of the newest {self.held} of {self._steps}, got {step}")
        latents: np.ndarray = self.model.predict_steps(self._windows[step][None], self.query, self.ledger)[0]
        return latents


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Switches the timm blocks between the fused kernel and matmul-softmax-matmul (faster in bf16 on a CPU)."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused_attn = fused
