"""A VL-JEPA on a stream whose Predictor runs for the steps that are asked for, and no others.

T steps, N states of a window, D their width, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError, check_int
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger
from jepa.selective import SelectiveEncoding


def mean_states(states: Tensor) -> np.ndarray:
    """What a policy watches of T windows without the Predictor: their mean state (T, D), float32 of unit norm.

    Args:
        states: (T, N, D).
    """
    watched: np.ndarray = F.normalize(states.float().mean(1), dim=-1).cpu().numpy()
    return watched


class PredictorOnDemand:
    """The X-Encoder at every step of a stream, the Predictor for a step when `OnDemand` asks for it::

        on_demand = PredictorOnDemand(model, "What happens?", ledger)
        policy = OnDemand(Gate(1.0, noise_floor=0.03), on_demand.predict)
        selective = SelectiveDecoder(policy, model, ledger)
        for states, times in on_demand.stream(frames, 2.0):
            for state, time in zip(states, times):
                show(selective.step(state, time))
        show(selective.finish())

    Args:
        model: in evaluation mode.
        query: what is asked.
        ledger: counts encoder, predictor and detector as `VLJEPA.stream` does.
        held: newest steps whose states (N, D) are held, >= 1: those of the segment's that `OnDemand` may ask for, and
            those that its policy lets pass before it closes a segment.

    Raises:
        InputError: `held` is not a whole number >= 1.
    """

    def __init__(self, model: VLJEPA, query: str, ledger: OperationLedger | None = None, held: int = 32) -> None:
        self.model, self.query = model, query
        self.ledger = OperationLedger() if ledger is None else ledger
        self.held = check_int("held", held, 1)
        self._windows: dict[int, Tensor] = {}  # states (N, D) of the newest steps
        self._steps = 0

    def stream(
        self, frames: Iterable[np.ndarray], step_rate: float, selection: SelectiveEncoding | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mean states (T, D) of the steps of a stream and their times (T,), as frames arrive: see `VLJEPA.windows`."""
        self._windows, self._steps = {}, 0
        for states, times in self.model.windows(frames, step_rate, self.ledger, selection):
            for step in [step for step in self._windows if step < self._steps - self.held]:
                del self._windows[step]
            self._windows.update(enumerate(states, start=self._steps))
            self._steps += len(states)
            yield mean_states(states), times

    def predict(self, step: int) -> np.ndarray:
        """The predicted embedding (E,), float32 of unit norm, of step number `step` of the stream.

        Raises:
            InputError: the stream has not come so far, or the step is no longer held.
        """
        if step not in self._windows:
            raise InputError(f"step must be one of the newest {self.held} of {self._steps}, got {step}")
        latents: np.ndarray = self.model.predict_steps(self._windows[step][None], self.query, self.ledger)[0]
        return latents
