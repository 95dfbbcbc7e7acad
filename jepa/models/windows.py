"""Sliding windows over a stream of frames: what a model of videos encodes, step by step.

M frames of a chunk, S pixels a side, T steps, N states of a window, D their width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jepa.encoders.vision import given_states
from jepa.errors import InputError
from jepa.models.costs import remembered
from jepa.models.roles import Part, SlotEncoder, XEncoder
from jepa.operations import OperationLedger, count_flops, timed_together, weight_bytes
from jepa.selective import SelectiveEncoding, WindowStream, slots_of

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
        stream = WindowStream(self, step_rate, ledger, selection)
        for chunk in frames:
            stream.push(chunk)
            for _, states, times in self.encode_windows([stream]):
                yield states, times

    @torch.no_grad()
    def encode_windows(self, streams: Sequence[WindowStream]) -> Iterator[tuple[int, Tensor, np.ndarray]]:
        """Encodes what the frames pushed to `streams` completed, in batches over all of them.

        Yields the place of a stream in `streams`, states (T, N, D) and the centres (T,) of their windows, as `windows`
        does for one stream. A stream of which nothing is due is left out.
        """
        due = [stream.due for stream in streams]
        if isinstance(self.x_encoder, SlotEncoder):
            self._encode_slots(streams)
            for place, (stream, steps) in enumerate(zip(streams, due, strict=True)):
                if steps:
                    states = torch.stack([torch.stack([stream.kept[slot] for slot in stream.slots(i)]) for i in steps])
                    yield place, self.x_encoder.add_time(states), stream.times(steps)
        else:
            windows = [(place, step) for place, steps in enumerate(due) for step in steps]
            for start in range(0, len(windows), _WINDOWS_AT_ONCE):
                some = windows[start : start + _WINDOWS_AT_ONCE]
                shares = Counter(place for place, _ in some)
                with timed_together("encoder", [streams[place].ledger for place in shares]):
                    pixels = np.stack([streams[place].pixels(streams[place].slots(step)) for place, step in some])
                    states = self.encode(torch.from_numpy(pixels).flatten(1, 2))
                for (place, count), own in zip(shares.items(), states.split(list(shares.values())), strict=True):
                    stream = streams[place]
                    self._count(stream.ledger, "encoder", self.x_encoder, count, self.encoding_flops())
                    yield place, own, stream.times([step for each, step in some if each == place])
        for stream in streams:
            stream.forget()

    def _encode_slots(self, streams: Sequence[WindowStream]) -> None:
        """Each slot that the steps due need and that was not encoded before, of all streams in one call."""
        new = [
            (stream, sorted({slot for step in stream.due for slot in stream.slots(step)} - stream.kept.keys()))
            for stream in streams
        ]
        new = [(stream, slots) for stream, slots in new if slots]
        if not new or not isinstance(self.x_encoder, SlotEncoder):
            return
        with timed_together("encoder", [stream.ledger for stream, _ in new]):
            rows = torch.from_numpy(np.concatenate([stream.pixels(slots) for stream, slots in new]))
            encoded = iter(self.x_encoder.encode_slots(rows.flatten(0, 1).to(self.device)[None])[0])
        for stream, slots in new:
            stream.kept.update((slot, next(encoded)) for slot in slots)
            self._count(stream.ledger, "encoder", self.x_encoder, len(slots), self.encoding_flops())

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

    slots = slots_of
