"""The segments that a policy finds in recorded streams, as plain data, and the operations of encoding these streams.

T steps, E embedding dimensions, N latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from jepa.evaluation.streams import StreamSet
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


@dataclass(frozen=True)
class Segments:
    """The segments of each stream of a set, with the step at which each came out.

    `steps` are the latents (T, E) and times (T,) that were computed of each stream. `predicted` counts the embeddings
    that each stream took, where they are predicted on demand.

    >>> segments = Segments([], [], None)
    >>> segments.decoded(CachedDecoder(None))
    []
    """

    steps: list[tuple[np.ndarray, np.ndarray]]
    found: list[list[tuple[Segment, int]]]
    predicted: list[int] | None

    def decoded(self, decoder: Decoder) -> list[tuple[np.ndarray, list[str]]]:
        """Latents (N, E) of each stream's segments, and the decoder's texts of them."""
        return decode_segments(Recorded(self.found), decoder, self.steps)

    def emissions(
        self, decoder: Decoder, cache: LatentCache | None, latent_delay: float
    ) -> tuple[list[list[Emission]], OperationLedger]:
        """The emissions of each stream through an empty copy of the cache, and what they took."""
        cache = None if cache is None else cache.fresh()
        selective = SelectiveDecoder(Recorded(self.found), decoder, cache=cache, latent_delay=latent_delay)
        return selective.run_many(self.steps), selective.ledger


def segment_streams(streams: StreamSet, policy: Policy, selection: StepSelection | None = None) -> Segments:
    """What a policy makes of the selected steps of recorded streams.

    An oracle is told where the events of a stream begin and end. A policy on demand sees states in place of latents.
    """
    chosen, on_demand = streams.selected(selection), isinstance(policy, OnDemand)
    steps = list(zip(chosen.latents, chosen.times, strict=True))
    found, predicted = [], []
    for number, (latents, times) in enumerate(steps):
        if isinstance(policy, Oracle):
            events = chosen.records[number].events
            policy.boundaries = [second for event in events for second in (event.start, event.end)]
        asked: list[int] = []
        if isinstance(policy, OnDemand):
            policy.predict = partial(_predicted, latents, asked)
        found.append(policy.run(chosen.states[number] if on_demand else latents, times))
        predicted.append(len(asked))
    return Segments(steps, found, predicted if on_demand else None)


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
    streams: StreamSet, index: int, selection: StepSelection | None, predicted: int | None = None
) -> tuple[OperationLedger, EstimatedSeconds]:
    """What encoding one stream takes, and predicting at every selected step, or `predicted` times.

    The whole stream was encoded once. The calls and FLOPs of a selection of steps are exact, since all calls cost the
    same. Its wall time was not measured: the estimate is a call's mean time, times the calls.
    """
    whole, ledger = streams.ledgers[index], OperationLedger()
    ledger.stream(whole.stream_seconds)
    calls, estimated = {"encoder": whole.encoder.calls, "predictor": whole.predictor.calls}, {}
    if selection is not None:
        mask = selection.select(streams.changes[index])
        calls = {"encoder": slots_needed(mask, streams.hop, streams.length), "predictor": int(mask.sum())}
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
