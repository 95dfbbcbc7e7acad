"""Recorded streams that triggers are calibrated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa.data.world import CAPTION_QUERIES, all_scenes, captions
from jepa.evaluation.streams import SPLITS, EncodedStream, load_streams
from jepa.results import StreamEvaluation, read_document
from jepa.selective import ScoredStream, TriggerCalibration, calibrate_trigger

QUERY = CAPTION_QUERIES[0]  # that recorded latents answer


@dataclass(frozen=True)
class Recordings:
    """Streams with their annotations, encoded at `step_rate_hz`.

    >>> Recordings((), 2.0).calibrate(np.ones(1), "a dog barks", 1.0) is None
    True
    """

    streams: tuple[EncodedStream, ...]
    step_rate_hz: float

    @classmethod
    def read(cls, folder: Path, step_rate_hz: float) -> Recordings:
        """All streams that `jepa evaluate` saved at this step rate. Raises `InputError` for a broken evaluation."""
        evaluation: StreamEvaluation = read_document(folder, StreamEvaluation)
        settings = [name for name, each in evaluation.settings.items() if each.step_rate_hz == step_rate_hz]
        found = [each for name in settings for split in SPLITS for each in load_streams(folder / name / split)]
        return cls(tuple(found), step_rate_hz)

    def calibrate(self, embedding: np.ndarray, sentence: str, per_hour: float) -> TriggerCalibration | None:
        """The threshold of a sentence with its embedding (E,); None without recorded streams of this width."""
        fitting = [each for each in self.streams if each.latents.shape[1:] == embedding.shape]
        if not fitting:
            return None
        same = paraphrases(sentence)
        scored = [
            ScoredStream(
                each.latents @ embedding,
                each.times,
                each.record.duration,
                [(event.start, event.end) for event in each.record.events if plain(event.text) in same],
            )
            for each in fitting
        ]
        return calibrate_trigger(scored, per_hour)


def plain(text: str) -> str:
    """Without capitals, and without a full stop."""
    return text.strip().rstrip(".").lower()


def paraphrases(sentence: str) -> frozenset[str]:
    """The sentence, and what the embedded world says in other words for the same."""

    def alike() -> Iterator[str]:
        yield plain(sentence)
        for scene in all_scenes():
            if plain(sentence) in (texts := captions(scene)):
                yield from texts

    return frozenset(alike())
