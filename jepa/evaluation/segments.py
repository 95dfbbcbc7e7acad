"""The segments that a policy finds in recorded streams, as plain data, and the operations of encoding these streams.

T steps, E embedding dimensions, N latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from jepa.evaluation.streams import EncodedStream
from jepa.operations import OperationLedger
from jepa.results import EstimatedSeconds
from jepa.selective import (
    Decoded,
    Decoder,
    Emission,
    LatentCache,
    OnDemand,
    Oracle,
    Policy,
    Segment,
    SelectiveDecoder,
    StepSelection,
    decode_segments,
    slots_needed,
)
from jepa.selective.calibration import DecodedStream


@dataclass(frozen=True)
class Segments:
    """The segments of each stream, with the step at which each came out.

    `steps` are the latents (T, E) and times (T,) that were computed of each stream. `predicted` counts the embeddings
    that each stream took, None where every step has one.

    >>> Segments([], [], []).decoded(CachedDecoder(None))
    []
    """

    steps: list[tuple[np.ndarray, np.ndarray]]
    found: list[list[tuple[Segment, int]]]
    predicted: list[int | None]

    def decoded(self, decoder: Decoder) -> Sequence[DecodedStream]:
        """Latents (N, E) of each stream's segments, and the decoder's texts of them."""
        return decode_segments(Recorded(self.found), decoder, self.steps)

    def emissions(
        self, decoder: Decoder, cache: LatentCache | None, latent_delay: float
    ) -> tuple[list[list[Emission]], OperationLedger]:
        """The emissions of each stream through an empty copy of the cache, and what they took."""
        cache = None if cache is None else cache.fresh()
        selective = SelectiveDecoder(Recorded(self.found), decoder, cache=cache, latent_delay=latent_delay)
        return selective.run_many(self.steps), selective.ledger


def segment_streams(
    streams: Sequence[EncodedStream], policy: Policy, selection: StepSelection | None = None
) -> Segments:
    """What a policy makes of the selected steps of recorded streams.

    An oracle is told where the events of a stream begin and end. A policy on demand sees states in place of latents.
    """
    segments = Segments([], [], [])
    for stream in (each.selected(selection) for each in streams):
        if isinstance(policy, Oracle):
            policy.boundaries = [second for event in stream.record.events for second in (event.start, event.end)]
        asked: list[int] = []
        rows = stream.latents
        if isinstance(policy, OnDemand) and stream.states is not None:
            policy.predict = partial(_predicted, stream.latents, asked)
            rows = stream.states
        segments.steps.append((stream.latents, stream.times))
        segments.found.append(policy.run(rows, stream.times))
        segments.predicted.append(len(asked) if isinstance(policy, OnDemand) else None)
    return segments


def _predicted(latents: np.ndarray, asked: list[int], step: int) -> np.ndarray:
    """The embedding of a step of a recorded stream, whose latents (T, E) were all predicted; notes who asked."""
    asked.append(step)
    return np.asarray(latents[step])


class Recorded(Policy):
    """Gives the segments that were found before, stream by stream.

    >>> policy = Recorded([[], []])
    >>> policy.run(np.zeros((1, 2)), np.zeros(1))
    []
    """

    name, causal, latency, state = "recorded", False, "as it was", "none"

    def __init__(self, found: Iterable[list[tuple[Segment, int]]]) -> None:
        self._streams = iter(found)

    def start(self) -> None: ...

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        return []

    def finish(self) -> list[Segment]:
        return []

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        return next(self._streams)


class CachedDecoder:
    """Decodes equal latents once. For sweeps only: the ledgers of operating points count the decoder's own calls.

    >>> class Word:
    ...     def decode(self, latents):
    ...         return [Decoded("red", 1, 1)] * len(latents)
    >>> CachedDecoder(Word()).decode(torch.ones(2, 4))[1].text
    'red'
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._cached: dict[bytes, Decoded] = {}

    def decode(self, latents: torch.Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Results for latents (N, E), in their order."""
        keys = [row.tobytes() for row in latents.numpy()]
        new = {key: row for row, key in enumerate(keys) if key not in self._cached}
        if new:
            self._cached.update(zip(new, self.decoder.decode(latents[list(new.values())]), strict=True))
        return [self._cached[key] for key in keys]


def encoding_operations(
    stream: EncodedStream, selection: StepSelection | None, predicted: int | None = None
) -> tuple[OperationLedger, EstimatedSeconds]:
    """What encoding a stream takes, and predicting at every selected step, or `predicted` times.

    The whole stream was encoded once. The calls and FLOPs of a selection of steps are exact, since all calls cost the
    same. Its wall time was not measured: the estimate is a call's mean time, times the calls.
    """
    whole, ledger = stream.ledger, OperationLedger()
    ledger.stream(whole.stream_seconds)
    calls, estimated = {"encoder": whole.encoder.calls, "predictor": whole.predictor.calls}, {}
    if selection is not None:
        mask = stream.mask(selection)
        calls = {"encoder": slots_needed(mask, stream.hop, stream.length), "predictor": int(mask.sum())}
        if selection.threshold is not None:
            ledger.add("detector", whole.detector)
    if predicted is not None:
        calls["predictor"] = predicted
    for part, once in (("encoder", whole.encoder), ("predictor", whole.predictor)):
        fraction = calls[part] / once.calls if once.calls else 0.0
        measured = selection is None and (part == "encoder" or predicted is None)
        estimated[part] = 0.0 if measured else once.seconds * fraction
        exact = {name: round(getattr(once, name) * fraction) for name in ("forward_passes", "flops", "weight_bytes")}
        ledger.count(part, calls=calls[part], seconds=once.seconds if measured else 0.0, **exact)
    return ledger, EstimatedSeconds(**estimated)
