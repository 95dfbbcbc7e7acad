"""The oracle: segments from annotated boundaries, an upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jepa.errors import InputError
from jepa.selective.policies.offline import Segmentation
from jepa.selective.types import Segment


class Oracle(Segmentation):
    """Segments between annotated boundaries: an upper bound, and no method, since it is told the answer.

    Before each stream `boundaries` is set to the times where its events begin and end; they are used up by
    it. The steps from one boundary (included) to the next make a segment, as do those before the first and
    those from the last one on; where no step falls between two boundaries there is nothing to decode.

    It bounds the gain of better cuts at that number of decodes, if events are to be told apart. Fewer
    decodes may still be enough where events repeat.

    Args:
        representative: as for `Ward`.

    Attributes:
        boundaries: seconds, in any order; None if not set since the last stream.

    Raises:
        InputError: `representative` is not known; `boundaries` are not finite; or a stream begins before they are set.

    >>> oracle = Oracle("mean")
    >>> oracle.boundaries = [2.0]
    >>> [(segment.start, segment.end) for segment, _ in oracle.run(np.ones((4, 1), np.float32), np.arange(4.0))]
    [(0.0, 1.0), (2.0, 3.0)]
    """

    method = "oracle"

    def __init__(self, representative: str) -> None:
        self._boundaries: tuple[float, ...] | None = None
        self._times: list[float] = []
        super().__init__(representative)

    @property
    def boundaries(self) -> tuple[float, ...] | None:
        """Seconds, sorted; None if not set since the last stream."""
        return self._boundaries

    @boundaries.setter
    def boundaries(self, seconds: Sequence[float]) -> None:
        for second in seconds:
            if not math.isfinite(second):
                raise InputError(f"boundaries must be finite, got {second}")
        self._boundaries = tuple(sorted(float(second) for second in seconds))

    def start(self) -> None:
        if self._times:  # a stream was begun: its boundaries are not those of the next
            self._boundaries = None
        super().start()

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._require_boundaries()
        return super().step(latent, time)

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        boundaries, self._boundaries = self._require_boundaries(), None
        return np.unique(np.searchsorted(boundaries, times, side="right"), return_index=True)[1]

    def _require_boundaries(self) -> tuple[float, ...]:
        if self._boundaries is None:
            raise InputError("boundaries must be set before each stream, got None")
        return self._boundaries
