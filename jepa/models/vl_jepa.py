"""VL-JEPA (arXiv 2512.10942): the embedding of the answer is predicted, and turned into text only when asked for.

B clips, F frames a clip, S pixels a side, N states, D width, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    SlotEncoder,
    TextTokenizer,
    XEncoder,
    YDecoder,
    YEncoder,
    greedy_texts,
    role_parameters,
)
from jepa.operations import OperationLedger, count_flops, weight_bytes
from jepa.predictors.experts import active_parameters
from jepa.selective import Decoded, SelectiveEncoding

ROLES = {"x_encoder": "X-Encoder", "predictor": "Predictor", "y_encoder": "Y-Encoder", "y_decoder": "Y-Decoder"}
TEXT_ROLES = ("predictor", "y_encoder", "y_decoder")
_WINDOWS_AT_ONCE = 4  # of an X-Encoder that encodes windows as a whole: what bounds its memory on a stream


class VLJEPA(nn.Module):
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
        super().__init__()
        if frames < 1 or fps < 1 or frames % x_encoder.tubelet:
            raise InputError(
                f"frames and fps must be >= 1 and frames a multiple of tubelet {x_encoder.tubelet}, "
                f"got frames {frames}, fps {fps}"
            )
        own = dict(tokenizers or {})
        if unknown := own.keys() - set(TEXT_ROLES):
            raise InputError(f"tokenizers must be of {', '.join(TEXT_ROLES)}, got {', '.join(sorted(unknown))}")
        self.tokenizers: dict[str, TextTokenizer] = {role: own.get(role, tokenizer) for role in TEXT_ROLES}
        self.x_encoder, self.predictor = x_encoder, predictor
        self.y_encoder, self.y_decoder = y_encoder, y_decoder
        self.tokenizer, self.frames, self.fps = tokenizer, frames, fps
        self._flops: dict[tuple[str, int], int] = {}  # of a call, by what it is called on and its tokens
        self._query_flops: dict[str, int] = {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def window(self) -> float:
        """Length of a window in seconds."""
        return self.frames / self.fps

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
        self._count(ledger, "predictor", len(states), self.query_flops(query))
        return latents

    @torch.no_grad()
    def windows(
        self,
        frames: Iterable[np.ndarray],
        step_rate: float,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """States of a sliding window over a stream, as frames arrive.

        An X-Encoder that encodes time slots apart (`SlotEncoder`) encodes each at most once, whatever the overlap of
        the windows; any other encodes every window as a whole. With a `selection`, only the steps that it selects are
        computed, and only what their windows need is encoded. No more frames are held than those of a window and a
        chunk. The ledger counts one encoder call a slot (or window) encoded, and one detector call a slot that the
        change detector looks at.

        Args:
            frames: chunks (M, S, S, 3) uint8 of consecutive frames.
            step_rate: steps a second; fps / step_rate must be a multiple of the tubelet.
            selection: which steps to compute; None: all.

        Yields:
            States (T, N, D) and the centres (T,) float64 of their windows in seconds, for each chunk that completes
            windows to compute, a few at a time.
        """
        (hop, length), tubelet = self.slots(step_rate), self.x_encoder.tubelet
        ledger = ledger if ledger is not None else OperationLedger()
        size = self.x_encoder.size
        waiting = np.empty((0, size, size, 3), dtype=np.uint8)
        kept: dict[int, Tensor] = {}  # states of the slots encoded that a window may still need
        first = 0  # slot that `waiting` begins with
        step = 0
        if selection is not None:
            selection.start()
        for chunk in frames:
            waiting = np.concatenate([waiting, chunk])
            slots = waiting[: len(waiting) // tubelet * tubelet].reshape(-1, tubelet, size, size, 3)
            steps = max(0, (first + len(slots) - length) // hop + 1 - step)
            chosen = list(range(step, step + steps))
            if selection is not None:
                unseen = slots[selection.seen - first :]
                with ledger.timed("detector"):
                    due = selection.look(unseen, hop, length)
                ledger.count("detector", calls=len(unseen), flops=len(unseen) * selection.detector.flops(tubelet, size))
                chosen = [number for number, wanted in zip(chosen, due, strict=True) if wanted]
            for some, states in self._window_states(slots, first, chosen, hop, kept, ledger):
                yield states, np.array(some) * hop * tubelet / self.fps + 0.5 * self.window
            step += steps
            gone = min(step * hop - first, len(slots))
            first += gone
            waiting = waiting[gone * tubelet :]
            for slot in [slot for slot in kept if slot < first]:
                del kept[slot]

    def _window_states(
        self,
        slots: np.ndarray,
        first: int,
        chosen: Sequence[int],
        hop: int,
        kept: dict[int, Tensor],
        ledger: OperationLedger,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """States (M, N, D) of the windows of the steps `chosen`, M of these at a time; `slots` begin with slot `first`.

        `kept` are the states of slots encoded before, to which new ones are added.
        """
        length = self.frames // self.x_encoder.tubelet
        if not isinstance(self.x_encoder, SlotEncoder):
            for start in range(0, len(chosen), _WINDOWS_AT_ONCE):
                some = chosen[start : start + _WINDOWS_AT_ONCE]
                with ledger.timed("encoder"):
                    windows = np.stack([slots[i * hop - first : i * hop - first + length] for i in some])
                    states = self.encode(torch.from_numpy(windows).flatten(1, 2))
                self._count(ledger, "encoder", len(some), self.encoding_flops())
                yield some, states
            return
        needed = {slot for i in chosen for slot in range(i * hop, i * hop + length)}
        new = sorted(needed - kept.keys())
        if new:
            with ledger.timed("encoder"):
                rows = torch.from_numpy(slots[[slot - first for slot in new]])
                encoded = self.x_encoder.encode_slots(rows.flatten(0, 1).to(self.device)[None])[0]
            kept.update(zip(new, encoded, strict=True))
            self._count(ledger, "encoder", len(new), self.encoding_flops())
        if chosen:
            states = torch.stack([torch.stack([kept[i * hop + k] for k in range(length)]) for i in chosen])
            yield chosen, self.x_encoder.add_time(states)

    def _count(self, ledger: OperationLedger, part: str, calls: int, flops: int) -> None:
        """Counts `calls` of the encoder or the predictor on a stream, of `flops` each."""
        read = weight_bytes(self.x_encoder if part == "encoder" else self.predictor)
        ledger.count(
            part,
            calls=calls,
            forward_passes=calls,
            flops=calls * flops,
            weight_bytes=calls * read,
        )

    def encoding_flops(self) -> int:
        """FLOPs of a call of the encoder on a stream, of a slot or a window, counted on blanks."""
        encoder = self.x_encoder
        if not isinstance(encoder, SlotEncoder):
            return self.clip_flops()
        return self._counted(("slot", 0), lambda: encoder.encode_slots(self._blank(encoder.tubelet)))

    def clip_flops(self) -> int:
        """FLOPs of encoding a clip of `frames` frames."""
        return self._counted(("clip", 0), lambda: self.encode(self._blank(self.frames)))

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

    @torch.no_grad()
    def _counted(self, key: tuple[str, int], run: Callable[[], Any]) -> int:
        if key not in self._flops:
            self._flops[key] = count_flops(run).total
        return self._flops[key]

    def _blank(self, frames: int) -> Tensor:
        shape = (1, frames, self.x_encoder.size, self.x_encoder.size, 3)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def encodings(self, step_rate: float) -> tuple[int, int]:
        """What is encoded anew from one step to the next, and for a window: time slots, or windows as a whole."""
        return self.slots(step_rate) if isinstance(self.x_encoder, SlotEncoder) else (1, 1)

    def slots(self, step_rate: float) -> tuple[int, int]:
        """Slots from one step to the next, and slots of a window.

        Raises:
            InputError: the step rate does not fit the slots.
        """
        hop = self.fps / step_rate / self.x_encoder.tubelet if step_rate > 0 else 0
        if hop < 1 or hop != int(hop):
            raise InputError(
                f"step_rate must divide the slot rate of {self.fps / self.x_encoder.tubelet:g} Hz into whole hops, "
                f"got {step_rate} Hz"
            )
        return int(hop), self.frames // self.x_encoder.tubelet

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
