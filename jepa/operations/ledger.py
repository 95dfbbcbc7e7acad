"""The operation ledger: what detector, encoder, predictor, decoder and cache did, counted and never estimated."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from jepa.errors import InputError

PARTS = ("detector", "encoder", "predictor", "decoder")
TRAINING_PARTS = ("encoder", "predictor", "y_encoder", "decoder", "loss", "optimizer")


@dataclass(frozen=True)
class PartCount:
    """What one part of the model did; counts add up with ``+``.

    Args:
        calls: inputs handled: inputs that a change detector in front of the encoder looked at, windows of frames
            encoded, latents predicted, latents decoded. A batch of N counts N.
        forward_passes: passes through the part's network; a decoder that generates n tokens makes n of them.
        tokens: tokens generated, the end token included.
        flops: floating-point operations, 0 where nobody counted them.
        seconds: wall time.
        weight_bytes: bytes of weights read, 0 where nobody counted them. Each forward pass reads every parameter of the
            part once (`weight_bytes` of the module): looked-up tables and idle experts are read whole, and passes that
            share a batch do not share their reading. The backward pass of a training step reads them once more.
        cache_bytes: bytes of cached keys and values read, 0 where nobody counted them. A pass reads what was in the
            cache before it once; what it writes is not counted.

    Raises:
        InputError: a count that is not a whole number >= 0, or seconds that are not finite and >= 0.

    >>> (PartCount(calls=1, tokens=5) + PartCount(calls=1, tokens=7)).tokens
    12
    """

    calls: int = 0
    forward_passes: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    weight_bytes: int = 0
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        _normalise(self, ("calls", "forward_passes", "tokens", "flops", "weight_bytes", "cache_bytes"))

    def __add__(self, other: PartCount) -> PartCount:
        return PartCount(
            self.calls + other.calls,
            self.forward_passes + other.forward_passes,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
        )


@dataclass(frozen=True)
class CacheCount:
    """What a cache of decoded latents did; counts add up with ``+``.

    A hit is no decode: it counts here and never among the decoder's calls. The check of a hit, a decode that the
    method itself does without, counts as `audited` and is no operation of any part.

    Args:
        lookups: latents looked up.
        hits: look-ups that were answered with the text of another latent.
        audited: hits whose text was compared with what the decoder says for the latent looked up.
        wrong_hits: audited hits whose text is another than the decoder's.
        seconds: wall time of the look-ups.
        flops: floating-point operations of the look-ups.

    Raises:
        InputError: a count that is not a whole number >= 0, seconds that are not finite and >= 0, or counts that do
            not decrease from one to the next.

    >>> (CacheCount(lookups=2, hits=1) + CacheCount(lookups=3, hits=3)).hits
    4
    """

    lookups: int = 0
    hits: int = 0
    audited: int = 0
    wrong_hits: int = 0
    seconds: float = 0.0
    flops: int = 0

    def __post_init__(self) -> None:
        _normalise(self, ("lookups", "hits", "audited", "wrong_hits", "flops"))
        if not self.lookups >= self.hits >= self.audited >= self.wrong_hits:
            raise InputError(
                "lookups >= hits >= audited >= wrong_hits must hold, "
                f"got {self.lookups}, {self.hits}, {self.audited}, {self.wrong_hits}"
            )

    def __add__(self, other: CacheCount) -> CacheCount:
        return CacheCount(*map(operator.add, astuple(self), astuple(other)))


class OperationLedger:
    """Counts the operations of each part of the model over any number of streams.

    Every policy, uniform decoding included, writes into a ledger through the same code, so two ledgers
    compare like with like. Ledgers of separate streams or processes merge into one (`merge`, ``+``), and
    `to_dict` / `from_dict` are an exact round trip, also through JSON.

    Args:
        parts: `PARTS`, or `TRAINING_PARTS` of a ledger of training steps: see `TrainingMeter`.

    Raises:
        InputError: other parts.

    >>> ledger = OperationLedger()
    >>> ledger.count("decoder", calls=1, forward_passes=8, tokens=8, flops=1000)
    >>> ledger.decoder.tokens, ledger.total_flops
    (8, 1000)
    >>> OperationLedger.from_dict(ledger.to_dict()) == ledger
    True
    """

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        if tuple(parts) not in (PARTS, TRAINING_PARTS):
            raise InputError(f"parts must be {PARTS} or {TRAINING_PARTS}, got {tuple(parts)}")
        self._parts = {part: PartCount() for part in parts}
        self._cache = CacheCount()
        self._stream_seconds = 0.0
        self._steps = 0
        self._latencies: list[float] = []

    @property
    def detector(self) -> PartCount:
        """What the change detector in front of the encoder did so far; a ledger of training steps has none."""
        return self._part("detector")

    @property
    def encoder(self) -> PartCount:
        """What the encoder did so far."""
        return self._part("encoder")

    @property
    def predictor(self) -> PartCount:
        """What the predictor did so far."""
        return self._part("predictor")

    @property
    def decoder(self) -> PartCount:
        """What the decoder did so far."""
        return self._part("decoder")

    @property
    def cache(self) -> CacheCount:
        """What the cache of decoded latents did so far."""
        return self._cache

    @property
    def total_flops(self) -> int:
        """FLOPs of all parts and of the cache."""
        return sum(count.flops for count in self._parts.values()) + self._cache.flops

    @property
    def total_bytes(self) -> int:
        """Bytes of weights and of cached keys and values that all parts read."""
        return sum(count.weight_bytes + count.cache_bytes for count in self._parts.values())

    @property
    def total_seconds(self) -> float:
        """Wall seconds of all parts and of the cache."""
        return sum(count.seconds for count in self._parts.values()) + self._cache.seconds

    @property
    def stream_seconds(self) -> float:
        """Duration of the streams seen, in seconds."""
        return self._stream_seconds

    @property
    def step_count(self) -> int:
        """Number of steps (latents) of the streams seen."""
        return self._steps

    @property
    def latencies(self) -> tuple[float, ...]:
        """Latency of each emission in seconds, in the order counted."""
        return tuple(self._latencies)

    def count(
        self,
        part: str,
        *,
        calls: int = 0,
        forward_passes: int = 0,
        tokens: int = 0,
        flops: int = 0,
        seconds: float = 0.0,
        weight_bytes: int = 0,
        cache_bytes: int = 0,
    ) -> None:
        """Add to the counts of `part`, one of the ledger's; the meaning of each count is `PartCount`'s.

        Raises:
            InputError: an unknown part, or a count below 0. The ledger is then unchanged.
        """
        self.add(part, PartCount(calls, forward_passes, tokens, flops, seconds, weight_bytes, cache_bytes))

    def add(self, part: str, count: PartCount) -> None:
        """Add a count to those of `part`, one of the ledger's.

        Raises:
            InputError: an unknown part.
        """
        self._parts[part] = self._part(part) + count

    def count_cache(
        self,
        *,
        lookups: int = 0,
        hits: int = 0,
        audited: int = 0,
        wrong_hits: int = 0,
        seconds: float = 0.0,
        flops: int = 0,
    ) -> None:
        """Add to the counts of the cache; the meaning of each count is `CacheCount`'s.

        Raises:
            InputError: a count below 0, or the sums break a rule of `CacheCount`. The ledger is then unchanged.
        """
        more = {"lookups": lookups, "hits": hits, "audited": audited, "wrong_hits": wrong_hits, "flops": flops}
        sums = {name: getattr(self._cache, name) + _whole(name, value) for name, value in more.items()}
        self._cache = CacheCount(**sums, seconds=self._cache.seconds + _duration("seconds", seconds))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall seconds of the ``with`` block to `part`.

        Where CUDA is in use, the device is synchronised before and after, so that the time is that of the
        work and not of its launch. A block that raises adds nothing.

        Raises:
            InputError: an unknown part.
        """
        self._part(part)
        _synchronise()
        start = time.perf_counter()
        yield
        _synchronise()
        self.count(part, seconds=time.perf_counter() - start)

    def emission(self, latency_seconds: float) -> None:
        """Count one emitted text, `latency_seconds` after the start of what it describes."""
        self._latencies.append(_duration("latency_seconds", latency_seconds))

    def stream(self, seconds: float) -> None:
        """Add a stream's duration."""
        self._stream_seconds += _duration("seconds", seconds)

    def steps(self, n: int) -> None:
        """Add `n` steps (latents) of a stream."""
        self._steps += _whole("n", n)

    def merge(self, other: OperationLedger) -> None:
        """Add everything that `other` counted to this ledger.

        Raises:
            InputError: `other` has other parts. The ledger is then unchanged.
        """
        if self._parts.keys() != other._parts.keys():
            raise InputError(
                f"ledgers must have the same parts, got {', '.join(self._parts)} and {', '.join(other._parts)}"
            )
        for part in other._parts:
            self.add(part, other._parts[part])
        self._cache += other._cache
        self._stream_seconds += other._stream_seconds
        self._steps += other._steps
        self._latencies += other._latencies

    def __add__(self, other: OperationLedger) -> OperationLedger:
        total = OperationLedger(tuple(self._parts))
        total.merge(self)
        total.merge(other)
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OperationLedger) and vars(self) == vars(other)

    def per_step(self) -> dict[str, dict[str, float]]:
        """The counts of each part divided by the number of steps; of a ledger of one step, that step's.

        Raises:
            InputError: no step was counted.
        """
        if self._steps == 0:
            raise InputError("a ledger must have counted a step before it has a mean of them, got 0")
        counts = {part: asdict(count) for part, count in self._parts.items()}
        return {part: {name: value / self._steps for name, value in each.items()} for part, each in counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """The ledger as plain data for JSON.

        It has the counts of each part and of the `cache`, `stream_seconds`, `steps`, `latencies` (seconds each) and
        their summary `latency_seconds`, whose figures are None while nothing was emitted.
        """
        summary: dict[str, float | int | None] = dict.fromkeys(("count", "mean", "p50", "p95", "max"))
        summary["count"] = len(self._latencies)
        if self._latencies:
            middle, tail = np.percentile(self._latencies, (50, 95))
            summary |= {
                "mean": float(np.mean(self._latencies)),
                "p50": float(middle),
                "p95": float(tail),
                "max": max(self._latencies),
            }
        return {
            **{part: asdict(count) for part, count in self._parts.items()},
            "cache": asdict(self._cache),
            "stream_seconds": self._stream_seconds,
            "steps": self._steps,
            "latency_seconds": summary,
            "latencies": list(self._latencies),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> OperationLedger:
        """The ledger, of either kind of parts, that `to_dict` gave `record` for.

        Raises:
            InputError: a key is missing or unknown, a count is refused by `PartCount` or `CacheCount`, or
                `latency_seconds` summarises another number of emissions than `latencies` has.
        """
        ledger = cls(TRAINING_PARTS if isinstance(record, Mapping) and "optimizer" in record else PARTS)
        empty = ledger.to_dict()
        _check_keys("a ledger", record, empty)
        for name in (*ledger._parts, "cache", "latency_seconds"):
            _check_keys(f"a ledger's {name}", record[name], empty[name])
        for part in ledger._parts:
            ledger.count(part, **record[part])
        ledger.count_cache(**record["cache"])
        ledger.stream(record["stream_seconds"])
        ledger.steps(record["steps"])
        if not isinstance(record["latencies"], list):
            raise InputError(f"a ledger's latencies must be a list of seconds, got {record['latencies']!r}")
        for seconds in record["latencies"]:
            ledger.emission(seconds)
        if record["latency_seconds"]["count"] != len(record["latencies"]):
            raise InputError(
                f"a ledger's latency_seconds must count its {len(record['latencies'])} latencies, "
                f"got {record['latency_seconds']['count']}"
            )
        return ledger

    def _part(self, part: str) -> PartCount:
        if part not in self._parts:
            raise InputError(f"part must be one of {', '.join(self._parts)}, got {part!r}")
        return self._parts[part]


def _normalise(count: PartCount | CacheCount, whole: Iterable[str]) -> None:
    """Check the fields of a new count, and make plain numbers of them."""
    for name in whole:
        value = getattr(count, name)
        if type(value) is not int or value < 0:
            object.__setattr__(count, name, _whole(name, value))
    object.__setattr__(count, "seconds", _duration("seconds", count.seconds))


class _Weighted(Protocol):
    def parameters(self) -> Iterator[nn.Parameter]: ...


_WEIGHT_BYTES: WeakKeyDictionary[_Weighted, dict[torch.dtype | None, int]] = WeakKeyDictionary()


def weight_bytes(module: _Weighted) -> int:
    """Bytes of a module's parameters, each shared one once: what a forward pass reads of weights at most.

    They are added up once for the data type that the first parameter has, and remembered: a ledger asks at each pass.

    >>> weight_bytes(nn.Linear(4, 2))
    40
    """
    kind = next((parameter.dtype for parameter in module.parameters()), None)
    known = _WEIGHT_BYTES.setdefault(module, {})
    if kind not in known:
        known[kind] = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return known[kind]


def _whole(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"{name} must be a whole number >= 0, got {value!r}")
    return number


def _duration(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{name} must be finite and >= 0, got {value!r}")
    return seconds


def _check_keys(what: str, record: Any, names: Iterable[str]) -> None:
    if not isinstance(record, Mapping):
        raise InputError(f"{what} must be a mapping, got {record!r}")
    if set(record) != set(names):
        raise InputError(f"{what} must have the keys {', '.join(names)}, got {', '.join(map(str, record))}")


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
