"""The operation ledger: what detector, encoder, predictor, decoder and cache did, counted and never estimated."""

from __future__ import annotations

import math
import operator
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from jepa.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Self

PARTS = ("detector", "encoder", "predictor", "decoder")
TRAINING_PARTS = ("encoder", "predictor", "y_encoder", "decoder", "loss", "optimizer")


@dataclass(frozen=True)
class _Count:
    """Whole numbers >= 0, and `seconds` of wall time; counts add up with ``+``."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "seconds":
                object.__setattr__(self, name, _duration(name, value))
            elif type(value) is not int or value < 0:
                object.__setattr__(self, name, _whole(name, value))

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class PartCount(_Count):
    """What one part of the model did; counts add up with ``+``. FLOPs and bytes are 0 where nobody counted them.

    Raises:
        InputError: a count that is not a whole number >= 0, or seconds that are not finite and >= 0.

    >>> (PartCount(calls=1, tokens=5) + PartCount(calls=1, tokens=7)).tokens
    12
    """

    calls: int = 0  # slots that the change detector saw, windows encoded, latents predicted or decoded, each one
    forward_passes: int = 0  # through the part's network; n for n generated tokens
    tokens: int = 0  # generated, the end token included
    flops: int = 0  # as `count_flops` counts them
    seconds: float = 0.0  # wall time
    # All parameters once a forward pass, also idle experts, and once more a backward pass, whoever shares a batch.
    weight_bytes: int = 0
    cache_bytes: int = 0  # keys and values that the network's own cache held before each pass

    def times(self, count: int) -> PartCount:
        """The FLOPs and bytes of `count` such counts."""
        return PartCount(flops=count * self.flops, weight_bytes=count * self.weight_bytes)


@dataclass(frozen=True)
class CacheCount(_Count):
    """What a cache of decoded latents did; counts add up with ``+``. A hit is none of the decoder's calls.

    >>> (CacheCount(lookups=2, hits=1) + CacheCount(lookups=3, hits=3)).hits
    4
    """

    lookups: int = 0
    hits: int = 0  # look-ups that were answered with the text of another latent
    audited: int = 0  # hits whose text was compared with the decoder's, which is no operation of any part
    wrong_hits: int = 0  # audited hits with another text than the decoder's
    seconds: float = 0.0  # wall time of the look-ups
    flops: int = 0


class OperationLedger:
    """Counts the operations of each part of the model over any number of streams.

    Every policy, uniform decoding included, writes into a ledger through the same code, so two ledgers compare like
    with like. Ledgers of separate streams or processes add up with ``+``.

    Args:
        parts: `PARTS`, or `TRAINING_PARTS` of a ledger of training steps: see `TrainingMeter`.

    Raises:
        InputError: other parts. Methods raise it for an unknown part or a bad count, and change nothing then.

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
        self.cache = CacheCount()
        self.stream_seconds = 0.0  # duration of the streams seen
        self.step_count = 0  # steps (latents) of these streams
        self.latencies: list[float] = []  # seconds of each emission, in the order counted

    @property
    def detector(self) -> PartCount:
        """What the change detector in front of the encoder did."""
        return self._part("detector")

    @property
    def encoder(self) -> PartCount:
        """What the encoder did."""
        return self._part("encoder")

    @property
    def predictor(self) -> PartCount:
        """What the predictor did."""
        return self._part("predictor")

    @property
    def decoder(self) -> PartCount:
        """What the decoder did."""
        return self._part("decoder")

    @property
    def total_flops(self) -> int:
        """FLOPs of all parts and of the cache."""
        return sum(count.flops for count in self._parts.values()) + self.cache.flops

    @property
    def total_seconds(self) -> float:
        """Wall seconds of all parts and of the cache."""
        return sum(count.seconds for count in self._parts.values()) + self.cache.seconds

    def count(self, part: str, **counts: Any) -> None:
        """Add to the counts of `part`, by the names of `PartCount`."""
        self.add(part, PartCount(**counts))

    def add(self, part: str, count: PartCount) -> None:
        """Add a count to those of `part`."""
        self._parts[part] = self._part(part) + count

    def count_cache(self, **counts: Any) -> None:
        """Add to the counts of the cache, by the names of `CacheCount`; their sums must fall from one to the next."""
        total = self.cache + CacheCount(**counts)
        if not total.lookups >= total.hits >= total.audited >= total.wrong_hits:
            raise InputError(f"lookups >= hits >= audited >= wrong_hits must hold, got {total}")
        self.cache = total

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the wall seconds of the ``with`` block to `part`; a block that raises adds nothing.

        Where CUDA is in use the device is synchronised before and after, so that the work is timed, not its launch.
        """
        with timed_together(part, [self]):
            yield

    def emission(self, latency_seconds: float) -> None:
        """Count one emitted text, `latency_seconds` after the start of what it describes."""
        self.latencies.append(_duration("latency_seconds", latency_seconds))

    def stream(self, seconds: float) -> None:
        """Add a stream's duration."""
        self.stream_seconds += _duration("seconds", seconds)

    def steps(self, n: int) -> None:
        """Add `n` steps (latents) of a stream."""
        self.step_count += _whole("n", n)

    def merge(self, other: OperationLedger) -> None:
        """Add everything that `other`, a ledger of the same parts, counted."""
        if self._parts.keys() != other._parts.keys():
            raise InputError(f"ledgers must have the same parts, got {list(self._parts)} and {list(other._parts)}")
        for part, count in other._parts.items():
            self.add(part, count)
        self.cache += other.cache
        self.stream_seconds += other.stream_seconds
        self.step_count += other.step_count
        self.latencies += other.latencies

    def __add__(self, other: OperationLedger) -> OperationLedger:
        total = OperationLedger(tuple(self._parts))
        total.merge(self)
        total.merge(other)
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OperationLedger) and vars(self) == vars(other)

    def to_dict(self) -> dict[str, Any]:
        """The ledger as plain data for JSON, with a summary of the latencies, None while nothing was emitted."""
        summary: dict[str, float | None] = dict.fromkeys(("mean", "p50", "p95", "max"))
        if self.latencies:
            middle, tail = np.percentile(self.latencies, (50, 95)).tolist()
            mean = float(np.mean(self.latencies))
            summary = {"mean": mean, "p50": middle, "p95": tail, "max": max(self.latencies)}
        return {
            **{part: asdict(count) for part, count in self._parts.items()},
            "cache": asdict(self.cache),
            "stream_seconds": self.stream_seconds,
            "steps": self.step_count,
            "latency_seconds": {"count": len(self.latencies), **summary},
            "latencies": list(self.latencies),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> OperationLedger:
        """The ledger, of either kind of parts, that `to_dict` gave `record` for.

        Raises:
            InputError: a key is missing or unknown, or a count is refused.
        """
        ledger = cls(TRAINING_PARTS if isinstance(record, Mapping) and "optimizer" in record else PARTS)
        empty = ledger.to_dict()
        _check_keys("a ledger", record, empty)
        for name in (*ledger._parts, "cache"):
            _check_keys(f"a ledger's {name}", record[name], empty[name])
        if not isinstance(record["latencies"], list):
            raise InputError(f"a ledger's latencies must be a list of seconds, got {record['latencies']!r}")
        for part in ledger._parts:
            ledger.count(part, **record[part])
        ledger.count_cache(**record["cache"])
        ledger.stream(record["stream_seconds"])
        ledger.steps(record["steps"])
        for seconds in record["latencies"]:
            ledger.emission(seconds)
        return ledger

    def _part(self, part: str) -> PartCount:
        if part not in self._parts:
            raise InputError(f"part must be one of {', '.join(self._parts)}, got {part!r}")
        return self._parts[part]


@contextmanager
def timed_together(part: str, ledgers: Sequence[OperationLedger]) -> Iterator[None]:
    """Add the wall seconds of a ``with`` block to several ledgers: once to each, in full.

    As `OperationLedger.timed`, for what several streams compute in one batch. A share of a measured time would be an
    estimate; these seconds are measured, and do not add up over the ledgers.
    """
    each = list({id(ledger): ledger for ledger in ledgers}.values())
    for ledger in each:
        ledger.count(part)
    _synchronise()
    start = time.perf_counter()
    yield
    _synchronise()
    seconds = time.perf_counter() - start
    for ledger in each:
        ledger.count(part, seconds=seconds)


class _Weighted(Protocol):
    def parameters(self) -> Iterator[nn.Parameter]: ...


_WEIGHT_BYTES: WeakKeyDictionary[_Weighted, dict[torch.dtype | None, int]] = WeakKeyDictionary()


def weight_bytes(module: _Weighted) -> int:
    """Bytes of a module's parameters, each shared one once: what a forward pass reads of weights at most.

    They are remembered by the data type of the first parameter, since a ledger asks at each pass.

    >>> import torch
    >>> weight_bytes(torch.nn.Linear(4, 2))
    40
    """
    kind = next((parameter.dtype for parameter in module.parameters()), None)
    known = _WEIGHT_BYTES.setdefault(module, {})
    if kind not in known:
        known[kind] = sum(parameter.nbytes for parameter in module.parameters())
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
    loaded = sys.modules.get("torch")  # without it nothing runs on CUDA
    if loaded is not None and loaded.cuda.is_initialized():
        loaded.cuda.synchronize()
