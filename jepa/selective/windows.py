"""The windows over a stream of frames: which frames are held, and which slots a step needs. No model runs here.

M frames of a chunk, S pixels a side, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jepa.errors import InputError
from jepa.operations import OperationLedger
from jepa.selective.encoding import SelectiveEncoding


class _Framed(Protocol):
    """An X-Encoder: frames of `size` pixels a side, in slots of `tubelet` frames."""

    @property
    def size(self) -> int: ...

    @property
    def tubelet(self) -> int: ...


class _Windowed(Protocol):
    """A model that looks at a stream through a window of `frames` frames, at `fps` frames a second."""

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> int: ...

    @property
    def x_encoder(self) -> _Framed: ...


def slots_of(model: _Windowed, step_rate: float) -> tuple[int, int]:
    """Slots from one step to the next, and of a window. Raises `InputError` if the step rate does not fit.

    >>> from types import SimpleNamespace as Given
    >>> slots_of(Given(frames=8, fps=8, x_encoder=Given(size=64, tubelet=4)), step_rate=1.0)
    (2, 2)
    """
    rate = model.fps / model.x_encoder.tubelet
    hop = rate / step_rate if step_rate > 0 else 0
    if hop < 1 or hop != int(hop):
        raise InputError(f"step_rate must divide the slot rate of {rate:g} Hz into whole hops, got {step_rate} Hz")
    return int(hop), model.frames // model.x_encoder.tubelet


class WindowStream:
    """The windows over one stream, whose frames are pushed as they come: `WindowedModel.encode_windows` encodes them.

    Args:
        model: whose window it is.
        step_rate: steps a second, as for `WindowedModel.windows`.
        ledger: of the stream; a new one if not given.
        selection: chooses the steps to compute.

    Attributes:
        due: steps completed and not yet encoded, counted from the last gap.
        kept: states of the slots encoded that a window may still need, by slot.
    """

    def __init__(
        self,
        model: _Windowed,
        step_rate: float,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> None:
        self.hop, self.length = slots_of(model, step_rate)
        self.ledger = OperationLedger() if ledger is None else ledger
        self._tubelet, self._size, self._fps = model.x_encoder.tubelet, model.x_encoder.size, model.fps
        self._selection = selection
        self.skip(0)

    def skip(self, frame: int) -> None:
        """The next frame pushed is number `frame` of the stream: others are missing, and no window spans them."""
        self._origin = frame
        self._waiting = np.empty((0, self._size, self._size, 3), dtype=np.uint8)
        self._step = self._first = 0  # that comes next; slot that `_waiting` begins with
        self.due: list[int] = []
        self.kept: dict[int, Any] = {}
        if self._selection is not None:
            self._selection.start()

    def push(self, frames: np.ndarray) -> None:
        """Takes the next frames (M, S, S, 3) uint8; raises `InputError` for others."""
        if frames.shape[1:] != self._waiting.shape[1:] or frames.dtype != np.uint8:
            side = f"{self._size}, {self._size}"
            raise InputError(f"frames must be (M, {side}, 3) uint8, got {frames.shape} {frames.dtype}")
        self._waiting = np.concatenate([self._waiting, frames])
        count = len(self._waiting) // self._tubelet
        steps = max(0, (self._first + count - self.length) // self.hop + 1 - self._step)
        chosen = list(range(self._step, self._step + steps))
        if (selection := self._selection) is not None:
            unseen = self.pixels(range(selection.seen, self._first + count))
            with self.ledger.timed("detector"):
                due = selection.look(unseen, self.hop, self.length)
            flops = len(unseen) * selection.detector.flops(self._tubelet, self._size)
            self.ledger.count("detector", calls=len(unseen), flops=flops)
            chosen = [number for number, wanted in zip(chosen, due, strict=True) if wanted]
        self._step += steps
        self.due += chosen

    def slots(self, step: int) -> range:
        """The slots of a step's window."""
        return range(step * self.hop, step * self.hop + self.length)

    def pixels(self, slots: Sequence[int]) -> np.ndarray:
        """Frames (N, tubelet, S, S, 3) uint8 of N slots that are held."""
        count = len(self._waiting) // self._tubelet
        whole = self._waiting[: count * self._tubelet].reshape(-1, self._tubelet, self._size, self._size, 3)
        return whole[[slot - self._first for slot in slots]]

    def times(self, steps: Sequence[int]) -> np.ndarray:
        """Centres (T,) float64 of the windows of T steps, in seconds."""
        first = self._origin + np.array(steps) * self.hop * self._tubelet
        centres: np.ndarray = first / self._fps + 0.5 * self.length * self._tubelet / self._fps
        return centres

    def forget(self) -> None:
        """Lets go of the steps due, and of frames and states that no later step needs."""
        self.due = []
        gone = min(self._step * self.hop - self._first, len(self._waiting) // self._tubelet)
        self._first += gone
        self._waiting = self._waiting[gone * self._tubelet :]
        self.kept = {slot: states for slot, states in self.kept.items() if slot >= self._first}
