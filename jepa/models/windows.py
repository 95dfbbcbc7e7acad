"""Sliding windows over a stream of frames: what a model of videos encodes, step by step.

M frames of a chunk, S pixels a side, T steps, N states of a window, D their width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jepa.encoders.vision import given_states
from jepa.errors import InputError
from jepa.models.costs import remembered
from jepa.models.roles import Part, SlotEncoder, XEncoder
from jepa.operations import OperationLedger, count_flops, weight_bytes
from jepa.selective import SelectiveEncoding

_WINDOWS_AT_ONCE = 4  # of an X-Encoder that encodes windows as a whole: what bounds its memory on a stream


class WindowedModel(nn.Module):
    """A model with an X-Encoder that looks at a stream through a window of `frames` frames, at `fps` frames a second.

    `frames` is a multiple of the X-Encoder's tubelet. A subclass adds what is done with the states.
    """

    x_encoder: XEncoder

    def __init__(self, x_encoder: XEncoder, frames: int, fps: int) -> None:
        super().__init__()
        if frames < 1 or fps < 1 or frames % x_encoder.tubelet:
            raise InputError(
                f"frames and fps must be >= 1 and frames a multiple of tubelet {x_encoder.tubelet}, "
                f"got frames {frames}, fps {fps}"
            )
        self.x_encoder, self.frames, self.fps = x_encoder, frames, fps

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def window(self) -> float:
        """Seconds."""
        return self.frames / self.fps

    def encode(self, frames: Tensor) -> Tensor:
        """X-Encoder: (B, F, S, S, 3) uint8 -> states S_X (B, N, D).

        With F = 1 these are pictures, each repeated to fill a window unless the X-Encoder `takes_images`. States
        (B, N, D) that the same X-Encoder computed before pass as they are; while it is trained they raise `InputError`,
        for no gradient would reach it.
        """
        frames = frames.to(self.device)
        if frames.ndim == 3:
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.x_encoder.parameters()):
                raise InputError("states computed before need a frozen X-Encoder, got one that is trained")
            return given_states(frames, self.x_encoder.width)
        if frames.ndim == 5 and frames.shape[1] == 1 and not getattr(self.x_encoder, "takes_images", False):
            frames = frames.expand(-1, self.frames, -1, -1, -1)
        return self.x_encoder(frames)

    @torch.no_grad()
    def windows(
        self,
        frames: Iterable[np.ndarray],
        step_rate: float,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """States of a sliding window over a stream, as chunks (M, S, S, 3) uint8 of its frames arrive.

        Yields states (T, N, D) and the centres (T,) float64 of their windows in seconds, a few at a time. fps /
        step_rate, in steps a second, must be a multiple of the tubelet.

        A `SlotEncoder` encodes each time slot at most once, whatever the overlap of the windows; any other X-Encoder
        encodes every window as a whole. A `selection` chooses the steps to compute, and only what their windows need
        is encoded. No more frames are held than those of a window and a chunk. The ledger counts an encoder call for
        each slot (or window) encoded, and a detector call for each slot that the change detector looks at.
        """
        (hop, length), tubelet, size = self.slots(step_rate), self.x_encoder.tubelet, self.x_encoder.size
        ledger = OperationLedger() if ledger is None else ledger
        waiting = np.empty((0, size, size, 3), dtype=np.uint8)
        kept: dict[int, Tensor] = {}  # states of the slots encoded that a window may still need
        step = first = 0  # that comes next; slot that `waiting` begins with
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
        """Steps `chosen` and their windows' states (M, N, D), a few at a time.

        `slots` begin with slot `first`; `kept` has the states of slots encoded before, and gets new ones.
        """
        length = self.frames // self.x_encoder.tubelet
        if not isinstance(self.x_encoder, SlotEncoder):
            for start in range(0, len(chosen), _WINDOWS_AT_ONCE):
                some = chosen[start : start + _WINDOWS_AT_ONCE]
                with ledger.timed("encoder"):
                    windows = np.stack([slots[i * hop - first : i * hop - first + length] for i in some])
                    states = self.encode(torch.from_numpy(windows).flatten(1, 2))
                self._count(ledger, "encoder", self.x_encoder, len(some), self.encoding_flops())
                yield some, states
            return
        needed = {slot for i in chosen for slot in range(i * hop, i * hop + length)}
        new = sorted(needed - kept.keys())
        if new:
            with ledger.timed("encoder"):
                rows = torch.from_numpy(slots[[slot - first for slot in new]])
                encoded = self.x_encoder.encode_slots(rows.flatten(0, 1).to(self.device)[None])[0]
            kept.update(zip(new, encoded, strict=True))
            self._count(ledger, "encoder", self.x_encoder, len(new), self.encoding_flops())
        if chosen:
            states = torch.stack([torch.stack([kept[i * hop + k] for k in range(length)]) for i in chosen])
            yield chosen, self.x_encoder.add_time(states)

    def _count(self, ledger: OperationLedger, part: str, module: Part, calls: int, flops: int) -> None:
        read = weight_bytes(module)
        ledger.count(part, calls=calls, forward_passes=calls, flops=calls * flops, weight_bytes=calls * read)

    @remembered
    def encoding_flops(self) -> int:
        """FLOPs of a call of the encoder on a stream: of a slot or a window."""
        encoder = self.x_encoder
        if isinstance(encoder, SlotEncoder):
            return count_flops(lambda: encoder.encode_slots(self._blank(encoder.tubelet))).total
        return self.clip_flops()

    @remembered
    def clip_flops(self) -> int:
        """FLOPs of encoding a clip of `frames` frames."""
        return count_flops(lambda: self.encode(self._blank(self.frames))).total

    def _blank(self, frames: int) -> Tensor:
        shape = (1, frames, self.x_encoder.size, self.x_encoder.size, 3)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def encodings(self, step_rate: float) -> tuple[int, int]:
        """Calls of the encoder from one step to the next, and for a window."""
        return self.slots(step_rate) if isinstance(self.x_encoder, SlotEncoder) else (1, 1)

    def slots(self, step_rate: float) -> tuple[int, int]:
        """Slots from one step to the next, and of a window. Raises `InputError` if the step rate does not fit."""
        rate = self.fps / self.x_encoder.tubelet
        hop = rate / step_rate if step_rate > 0 else 0
        if hop < 1 or hop != int(hop):
            raise InputError(f"step_rate must divide the slot rate of {rate:g} Hz into whole hops, got {step_rate} Hz")
        return int(hop), self.frames // self.x_encoder.tubelet
