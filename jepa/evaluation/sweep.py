"""Policies swept over saved latents: curves, savings at equal quality, operation counts. No encoder runs here.

S streams, T steps, E embedding dimensions, N latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from jepa.config import build
from jepa.errors import InputError
from jepa.evaluation.streams import StreamSet
from jepa.metrics import (
    DocumentFrequency,
    SweepPoint,
    bootstrap_mean,
    document_frequency,
    saving_at_equal_quality,
    stream_scores,
    tokenize,
)
from jepa.operations import OperationLedger
from jepa.selective import Decoded, Decoder, Emission, Policy, SelectiveDecoder

Counted = Callable[[], None]


@dataclass(frozen=True)
class Sweep:
    """A policy family: `make(value)` gives the policy with its knob at `value`."""

    name: str
    label: str
    knob: str
    values: tuple[float, ...]
    make: Callable[[float], Policy]


def sweeps(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, Sweep]:
    """The policy families of a validated report configuration."""

    def factory(node: Mapping[str, Any], knob: str) -> Callable[[float], Policy]:
        return lambda value: build(node, **{knob: value})

    return {
        name: Sweep(name, p["label"], p["knob"], tuple(p["values"]), factory(p["policy"], p["knob"]))
        for name, p in policies.items()
    }


class RememberingDecoder:
    """Decodes equal latents once. For sweeps only: every policy's calls are counted all the same."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._known: dict[bytes, Decoded] = {}

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        keys = [row.tobytes() for row in latents.numpy()]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            decoded = self.decoder.decode(latents[list(new.values())])
            self._known.update(zip(new, decoded, strict=True))
        return [self._known[key] for key in keys]


def sweep_setting(
    streams: Mapping[str, StreamSet],
    decoder: Decoder,
    families: Mapping[str, Sweep],
    references: Sequence[Mapping[str, Any]],
    latent_delay: float,
    confidence: float,
    seed: int,
    name: str,
) -> dict[str, Any]:
    """Curves, savings, operations and emissions of one setting.

    `streams` has the splits `calibration` and `test`. A reference is `{policy, rate_hz}`; the first is the headline.
    The pool of document frequencies is one for all policies of a split: its annotations.

    Returns:
        `curves`, `savings` and `operations` of the results schema, and `emissions`: for the policies that the strip
        shows, those on the first test stream.
    """
    remembering = RememberingDecoder(decoder)
    points: dict[str, dict[str, dict[float, SweepPoint]]] = {}
    total = sum(len(f.values) for f in families.values()) * len(streams)
    with tqdm(total=total, desc=f"policies, {name}", unit="run") as bar:
        for split, recorded in streams.items():
            frequencies = _frequencies(recorded)
            for family in families.values():
                for value in family.values:
                    emissions, _ = _decode(family.make(value), recorded, remembering, latent_delay)
                    point = _score(value, recorded, emissions, frequencies)
                    points.setdefault(family.name, {}).setdefault(split, {})[value] = point
                    bar.update()
    savings = list(_savings(points, families, references, confidence, seed))
    operations: list[dict[str, Any]] = []
    strip: dict[str, list[dict[str, Any]]] = {}
    for policy, knob in _operating_points(savings, references):
        emissions, ledger = _decode(families[policy].make(knob), streams["test"], decoder, latent_delay)
        for encoding in streams["test"].ledgers:
            ledger = ledger + encoding
        operations.append({"policy": policy, "knob": knob, "ledger": ledger.to_dict()})
        strip.setdefault(policy, [_plain(e) for e in emissions[0]])
    curves = {family.name: _curve(family, points[family.name], seed) for family in families.values()}
    return {"curves": curves, "savings": savings, "operations": operations, "emissions": strip}


def _decode(
    policy: Policy, streams: StreamSet, decoder: Decoder, latent_delay: float
) -> tuple[list[list[Emission]], OperationLedger]:
    selective = SelectiveDecoder(policy, decoder, latent_delay=latent_delay)
    with _naming_streams(streams):
        emissions = selective.run_many(list(zip(streams.latents, streams.times, strict=True)))
    return emissions, selective.ledger


@contextmanager
def _naming_streams(streams: StreamSet) -> Iterator[None]:
    """Errors about `stream 3` name its video instead."""
    try:
        yield
    except InputError as error:
        number, colon, rest = str(error).removeprefix("stream ").partition(": ")
        if not (colon and number.isdigit()):
            raise
        raise InputError(f"stream {streams.records[int(number)].video_id}: {rest}") from None


def _frequencies(streams: StreamSet) -> DocumentFrequency:
    return document_frequency([[tokenize(event.text)] for record in streams.records for event in record.events])


def _score(
    knob: float, streams: StreamSet, emissions: Sequence[Sequence[Emission]], frequencies: DocumentFrequency
) -> SweepPoint:
    scores = [
        stream_scores(
            [event.text for event in record.events],
            np.array([event.midpoint for event in record.events]),
            [emission.text for emission in emitted],
            np.array([emission.time for emission in emitted]),
            frequencies,
        )
        for record, emitted in zip(streams.records, emissions, strict=True)
    ]
    return SweepPoint(
        knob,
        tuple(scores),
        np.array([len(emitted) for emitted in emissions]),
        np.array([record.duration for record in streams.records]),
    )


def _savings(
    points: Mapping[str, Mapping[str, Mapping[float, SweepPoint]]],
    families: Mapping[str, Sweep],
    references: Sequence[Mapping[str, Any]],
    confidence: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    for number, reference in enumerate(references):
        name, rate = reference["policy"], reference["rate_hz"]
        if name not in families or rate not in families[name].values:
            raise InputError(f"reference {name} at {rate:g} Hz must be one of the swept policies and values")
        for family in families.values():
            saving = saving_at_equal_quality(
                points[name]["calibration"][rate],
                list(points[family.name]["calibration"].values()),
                points[name]["test"][rate],
                list(points[family.name]["test"].values()),
                confidence=confidence,
                seed=seed,
            )
            yield {
                "reference": dict(reference),
                "headline": number == 0,
                "policy": family.name,
                **asdict(saving),
            }


def _operating_points(
    savings: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float]]:
    """The headline reference itself, then each policy where it was found to be as good."""
    first = references[0]
    chosen = [(first["policy"], first["rate_hz"])]
    chosen += [(s["policy"], s["knob"]) for s in savings if s["headline"] and s["knob"] is not None]
    return list(dict.fromkeys(chosen))


def _curve(family: Sweep, points: Mapping[str, Mapping[float, SweepPoint]], seed: int) -> dict[str, Any]:
    policy = family.make(family.values[0])
    curve: dict[str, Any] = {
        "label": family.label,
        "causal": policy.causal,
        "latency": policy.latency,
        "knob": family.knob,
    }
    for split, by_knob in points.items():
        curve[split] = [
            {
                "knob": knob,
                "decodes_per_second": point.decodes_per_second,
                "cider_d": asdict(bootstrap_mean(point, seed=seed)),
            }
            for knob, point in by_knob.items()
        ]
    return curve


def _plain(emission: Emission) -> dict[str, Any]:
    return {key: value for key, value in asdict(emission).items() if key != "source"}
