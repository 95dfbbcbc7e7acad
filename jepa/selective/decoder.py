"""The selective decoder: a policy chooses what to decode, a decoder or a cache gives its text, a ledger counts.

T steps of a stream, E width of the latent space.
"""

from __future__ import annotations

import gc
import math
import time
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TypeVar

import numpy as np

from jepa.errors import InputError, check_int, check_nonnegative
from jepa.operations import OperationLedger, timed_together
from jepa.selective.cache import CacheEntry, LatentCache
from jepa.selective.policies.base import Policy
from jepa.selective.types import Array, Decoder, Emission, Segment, given_to

NORM_TOLERANCE = 1e-3
R = TypeVar("R")


class SelectiveDecoder:
    """Decodes a stream of latents where its policy says so.

    `step` for each latent of a live stream and `finish` at its end give the same emissions and counts as `run` for a
    recorded stream. Every latent is checked before the policy sees it: a bad one changes nothing, and a live stream
    goes on with its next good step.

    *The cache* is asked for each segment as soon as the policy has closed it. On a hit the segment gets the text of the
    latent that it hit, perhaps one that still waits for the decoder, and the decoder is not called.

    *Payloads.* A segment carries the payload of its last step to decoder and cache. They are held for the `lag` of the
    policy, or, if it has none, since the last segment.

    *Micro-batches.* With a `max_delay`, segments of a live stream wait for the decoder until there are `batch_size` of
    them, until a step at which the oldest has waited so long in stream time, or until the end. The texts are the same,
    and in order: a hit waits for the segments before it.

    *The ledger* counts steps; one decoder call per latent decoded, with its reported costs and wall time; look-ups,
    hits, FLOPs and wall time of the cache; and the latency of each emission, from the start of its segment until
    `emitted_at`. Encoder, predictor and stream durations are counted by whoever runs them.

    If the decoder fails, its segments are lost: the policy has moved on, and the cache forgets them.

    *Live streams*, each with a selective decoder of its own, share batches by `stepping` and `decode_together`.

    Args:
        policy: which latents to decode. It must not be shared with another decoder, nor the cache.
        decoder: turns latents into text.
        ledger: where operations are counted; a new one if not given, as `self.ledger`.
        cache: asked before the decoder is.
        latent_delay: seconds from the time a latent is stamped with (the centre of its window) until it can be known.
        batch_size: most latents in one call of the decoder.
        max_delay: most seconds that a segment of a live stream waits for others to be decoded with.

    Raises:
        InputError: `latent_delay` or `max_delay` is not finite and >= 0, or `batch_size` is not a whole number >= 1.

    >>> from jepa.selective import Decoded, Gate
    >>> class Axis:
    ...     def decode(self, latents, payloads=None):
    ...         return [Decoded(f"axis {row.argmax()}", tokens=3, forward_passes=3) for row in latents]
    >>> selective = SelectiveDecoder(Gate(1.0), Axis(), cache=LatentCache(0.1, capacity=64))
    >>> for time, latent in enumerate(np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 0, 0, 0]]):
    ...     for emission in selective.step(latent, float(time)):
    ...         print(emission.start, emission.end, emission.text, emission.source)
    0.0 2.0 axis 0 decoder
    3.0 5.0 axis 1 decoder
    >>> [(emission.text, emission.source) for emission in selective.finish()]
    [('axis 0', 'cache')]
    """

    def __init__(
        self,
        policy: Policy,
        decoder: Decoder,
        ledger: OperationLedger | None = None,
        *,
        cache: LatentCache | None = None,
        latent_delay: float = 0.0,
        batch_size: int = 256,
        max_delay: float = 0.0,
    ) -> None:
        self.policy = policy
        self.decoder = decoder
        self.ledger = OperationLedger() if ledger is None else ledger
        self.cache = cache
        self.latent_delay = check_nonnegative("latent_delay", latent_delay)
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.max_delay = check_nonnegative("max_delay", max_delay)
        shared = cache is not None and cache.shared and policy.decodes_input
        self._shared = cache if shared else None  # with whose keys the latents of all streams are compared
        self._queue = _Queue(batch_size, max_delay)
        self.start()

    def start(self) -> None:
        """Begin a new stream; what is open of a stream that was not finished is dropped."""
        self.policy.start()
        dropped = self._queue.flush(0.0)
        if self.cache is not None:
            self.cache.discard(pick.entry for pick, _ in dropped if not pick.hit)
            self.cache.start()
        self._steps = 0
        self._width = 0 if self._shared is None else self._shared.width or 0  # of the latents so far; 0: any
        self._time = -math.inf
        self._payloads: dict[int, object] = {}  # by step, of the steps since the last segment

    def step(self, latent: Array | None, time: float, payload: object | None = None) -> list[Emission]:
        """Take the next latent of a live stream; return the emissions that it brings about.

        Args:
            latent: (E,) of unit norm; None if there is none, for a policy that reads no latents.
            time: its time in seconds, after the step before.
            payload: whatever decoder or cache need to know of this step. A segment carries that of its last step.

        Raises:
            InputError: the latent or the time breaks a rule. Nothing has changed.
        """
        return decode_together([self.stepping(latent, time, payload)])[0]

    def stepping(
        self, latent: Array | None, time: float, payload: object | None = None
    ) -> Generator[Waiting, None, list[Emission]]:
        """`step` as work for `decode_together`; no other call of this object before it is done."""
        given = None if latent is None else _array(latent, np.float32)[None]
        rows, seconds = self._checked(given, [time], self._width, self._steps, self._time)
        row, now = rows[0], float(seconds[0])
        if payload is not None:
            self._payloads[self._steps] = payload
            if self.policy.lag is not None:  # an older step can be no segment's last one any more
                self._payloads.pop(self._steps - self.policy.lag - 1, None)
        self._steps += 1
        self._width, self._time = len(row) or self._width, now
        self.ledger.steps(1)
        released = yield from self._take(self.policy.step(row, now), now)
        return (yield from self._emit(released + self._queue.expire(now)))

    def finish(self) -> list[Emission]:
        """End the live stream and return its last emissions; the next `step` begins a new one."""
        if self._steps == 0:
            raise InputError("stream is empty: finish() needs at least one step before it")
        [released] = decode_together([self._take(self.policy.finish(), self._time)])
        released += self._queue.flush(self._time)
        self.start()
        return decode_together([self._emit(released)])[0]

    def run(
        self, latents: Array | None, times: Array | Sequence[float], payloads: Sequence[object] | None = None
    ) -> list[Emission]:
        """Decode a recorded stream: T latents, times and payloads, each as for `step`.

        Raises:
            InputError: a step breaks a rule, there is none, or a live stream is still open. Nothing has changed.
        """
        return self.run_many([(latents, times)], None if payloads is None else [payloads])[0]

    def run_many(
        self,
        streams: Sequence[tuple[Array | None, Array | Sequence[float]]],
        payloads: Sequence[Sequence[object]] | None = None,
    ) -> list[list[Emission]]:
        """Decode many recorded streams, each as by `run`, with their latents batched together.

        T and E may differ between streams. An `InputError` names the stream if there are several.
        """
        if self._steps:
            raise InputError(f"a live stream is open, at step {self._steps}: finish() or start() must come first")
        checked, width = [], self._width
        for number, (latents, times) in enumerate(streams):
            try:
                rows, seconds = self._checked(latents, times, width)
                if payloads is not None and len(payloads[number]) != len(seconds):
                    raise InputError(f"payloads must be one a step, {len(seconds)}, got {len(payloads[number])}")
            except InputError as error:
                raise InputError(f"stream {number}: {error}" if len(streams) > 1 else str(error)) from None
            checked.append((rows, seconds))
            width = rows.shape[1] if self._shared is not None else 0
        with collection_paused():
            cuts = [self.policy.run(rows, seconds) for rows, seconds in checked]
            if payloads is not None:
                cuts = [
                    [(replace(segment, payload=given[segment.last]), step) for segment, step in cut]
                    for cut, given in zip(cuts, payloads, strict=True)
                ]
            released = []
            for (rows, seconds), cut in zip(checked, cuts, strict=True):
                if self.cache is not None:
                    self.cache.start()
                self.ledger.steps(len(rows))
                released.append(self._schedule(cut, seconds.tolist()))
        self.start()
        emissions = iter(decode_together([self._emit([item for stream in released for item in stream])])[0])
        return [[next(emissions) for _ in stream] for stream in released]

    def _checked(
        self,
        latents: Array | None,
        times: Array | Sequence[float],
        width: int,
        first: int = 0,
        before: float = -math.inf,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps as float32 (T, E) and float64 (T,), or an InputError that names the earliest bad one.

        `width`, `first` and `before`: width of the latents so far (0: any), index of the first step, time before it.
        """
        if latents is None and self.policy.reads_latents:
            raise InputError(f"the policy {self.policy.name} reads latents, got None")
        seconds = _array(times, np.float64)
        rows = np.empty((seconds.size, 0), dtype=np.float32) if latents is None else _array(latents, np.float32)
        if seconds.ndim != 1:
            raise InputError(f"times must have the shape (T,), got {seconds.shape}")
        if seconds.size == 0 and rows.size == 0:
            raise InputError("stream is empty: latents and times must hold at least one step, got 0")
        if latents is not None and (rows.ndim != 2 or rows.shape[1] == 0):
            raise InputError(f"latents must have the shape (T, E), (E,) of each step, got {rows.shape}")
        if len(rows) != len(seconds):
            raise InputError(f"latents and times must have equal lengths, got {len(rows)} and {len(seconds)}")
        if width and rows.shape[1] not in (0, width):
            rule = "must be as wide as those before or in a shared cache"
            raise InputError(f"latents {rule}, {width}, got {rows.shape[1]}")
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.vecdot(rows, rows)) if rows.shape[1] else np.ones(len(rows))
        earlier = np.append(before, seconds[:-1])
        rules = {
            "latents must be finite": np.isfinite(rows).all(axis=1),
            f"latents must have unit norm within {NORM_TOLERANCE}": np.abs(norms - 1) <= NORM_TOLERANCE,
            "times must be finite": np.isfinite(seconds),
            "times must strictly increase": earlier < seconds,
        }
        good = np.logical_and.reduce(list(rules.values()))
        if not good.all():
            i = int(np.argmin(good))
            rule = next(rule for rule, kept in rules.items() if not kept[i])
            got = f"norm {norms[i]:.6g}" if rule.startswith("latents") else f"{seconds[i]} after {earlier[i]}"
            raise InputError(f"{rule}, got {got} at step {first + i}")
        return rows, seconds

    def _schedule(self, cut: Sequence[tuple[Segment, int]], times: list[float]) -> list[_Released]:
        """What comes out of a recorded stream, given its segments and the steps at which they were cut."""
        [picks] = decode_together([self._pick([segment for segment, _ in cut])])
        if self.max_delay == 0:
            return [(pick, times[step]) for pick, (_, step) in zip(picks, cut, strict=True)]
        released: list[_Released] = []
        for pick, (_, step) in zip(picks, cut, strict=True):
            due = bisect_left(times, self._queue.deadline, hi=step)
            if due < step:
                released += self._queue.flush(times[due])
            released += self._queue.add(pick, times[step])
        due = bisect_left(times, self._queue.deadline)
        return released + self._queue.flush(times[min(due, len(times) - 1)])

    def _take(self, segments: Sequence[Segment], now: float) -> Generator[Waiting, None, list[_Released]]:
        if segments and self._payloads:
            segments = [replace(segment, payload=self._payloads.get(segment.last)) for segment in segments]
            last = segments[-1].last
            self._payloads = {step: payload for step, payload in self._payloads.items() if step > last}
        picks = yield from self._pick(segments)
        return [released for pick in picks for released in self._queue.add(pick, now)]

    def _pick(self, segments: Sequence[Segment]) -> Generator[Waiting, None, list[_Pick]]:
        """Ask the cache, if there is one, which segments it answers."""
        if self.cache is None:
            return [_Pick(segment, CacheEntry(), hit=False) for segment in segments]
        if not segments:
            return []
        if self.cache.reads_texts and len(segments) > 1:
            alone = []
            for segment in segments:
                alone += yield from self._pick([segment])
            return alone
        start, before = time.perf_counter(), self.cache.flops
        picks = [_Pick(segment, *self.cache.look_up(segment.latent, segment.payload)) for segment in segments]
        seconds, flops = time.perf_counter() - start, self.cache.flops - before
        self.ledger.count_cache(lookups=len(picks), hits=sum(p.hit for p in picks), seconds=seconds, flops=flops)
        if self.cache.reads_texts:
            yield from self._decode([pick for pick in picks if not pick.hit])
        return picks

    def _emit(self, released: Sequence[_Released]) -> Generator[Waiting, None, list[Emission]]:
        """Decode what missed the cache, batch by batch, and count."""
        if not released:
            return []
        yield from self._decode([pick for pick, _ in released if pick.entry.decoded is None and not pick.hit])
        with collection_paused():
            emissions = [pick.emission(moment + self.latent_delay) for pick, moment in released]
            for emission in emissions:
                self.ledger.emission(emission.emitted_at - emission.start)
        return emissions

    def _decode(self, picks: Sequence[_Pick]) -> Generator[Waiting, None, None]:
        try:
            if picks:
                yield Waiting(self, picks)
        except BaseException:
            if self.cache is not None:
                self.cache.discard(pick.entry for pick in picks if pick.entry.decoded is None)
            raise


@dataclass(frozen=True, slots=True)
class Waiting:
    """Segments of a stream that wait for their texts."""

    selective: SelectiveDecoder
    picks: Sequence[_Pick]


def decode_together(works: Sequence[Generator[Waiting, None, R]]) -> list[R]:
    """Do several works side by side and return their results: what all of them wait for is decoded in one batch.

    Each ledger counts as if its stream were alone, but the wall time of a batch in full: see `timed_together`. If the
    decoder fails, the error is raised in all works that wait; one that nobody catches there ends the others, too.

    Args:
        works: such as `SelectiveDecoder.stepping` of different streams, or a generator around several steps of one.

    >>> from jepa.selective import Decoded, Uniform
    >>> class Counting:
    ...     def decode(self, latents, payloads=None):
    ...         return [Decoded(f"one of {len(latents)}", tokens=3, forward_passes=3)] * len(latents)
    >>> streams, decoder = np.eye(2, dtype=np.float32), Counting()
    >>> works = [SelectiveDecoder(Uniform(1.0), decoder).stepping(latent, 0.0) for latent in streams]
    >>> [emission.text for emissions in decode_together(works) for emission in emissions]
    ['one of 2', 'one of 2']
    """
    results: dict[int, R] = {}
    running, error = dict(enumerate(works)), None
    try:
        while running:
            waiting: dict[int, Waiting] = {}
            for number, work in running.items():
                try:
                    waiting[number] = next(work) if error is None else work.throw(error)
                except StopIteration as done:
                    results[number] = done.value
            running, error = {number: running[number] for number in waiting}, None
            try:
                _write(list(waiting.values()))
            except Exception as caught:
                error = caught
    finally:
        for work in works:
            work.close()
    return [results[number] for number in range(len(works))]


def _write(waiting: Sequence[Waiting]) -> None:
    """The texts of all segments, in batches of one decoder and one width, and what they took."""
    rows = [(each.selective, pick) for each in waiting for pick in each.picks]
    for batch in _batches(rows):
        decoder = batch[0][0].decoder
        latents = given_to(decoder, np.stack([pick.segment.latent for _, pick in batch]))
        payloads = [pick.segment.payload for _, pick in batch]
        given = () if all(payload is None for payload in payloads) else (payloads,)
        with timed_together("decoder", [selective.ledger for selective, _ in batch]):
            results = decoder.decode(latents, *given)
        if len(results) != len(batch):
            raise RuntimeError(f"the decoder must return {len(batch)} results, one a latent, got {len(results)}")
        for (_, pick), decoded in zip(batch, results, strict=True):
            pick.entry.decoded = decoded
        costs = ("forward_passes", "tokens", "flops", "weight_bytes", "cache_bytes")
        streams = groupby(zip(batch, results, strict=True), key=lambda pair: pair[0][0])
        for selective, pairs in streams:
            own = [decoded for _, decoded in pairs]
            counts = {name: sum(getattr(decoded, name) for decoded in own) for name in costs}
            selective.ledger.count("decoder", calls=len(own), **counts)


@dataclass(frozen=True, slots=True)
class _Pick:
    """A segment that the policy cut, and the entry that holds its text or will once it is decoded."""

    segment: Segment
    entry: CacheEntry
    hit: bool

    def emission(self, emitted_at: float) -> Emission:
        decoded, segment = self.entry.decoded, self.segment
        if decoded is None:
            raise RuntimeError(f"the segment at {segment.time} s hit a latent that was not decoded")
        source = "cache" if self.hit else decoded.source
        return Emission(decoded.text, segment.time, segment.start, segment.end, emitted_at, source)


_Released = tuple[_Pick, float]  # and the time of the step at which it goes on


class _Queue:
    """At most `size` segments that wait up to `max_delay` seconds to be decoded together, and the hits behind them.

    The first one waits for the decoder: hits with nothing before them go on at once.
    """

    def __init__(self, size: int, max_delay: float) -> None:
        self._size, self._max_delay = size, max_delay
        self._picks: list[_Pick] = []
        self.flush(0.0)

    def add(self, pick: _Pick, now: float) -> list[_Released]:
        """Take the next segment, cut at `now`; return what goes on, this one included."""
        if pick.hit and not self._picks:
            return [(pick, now)]
        if not self._picks:
            self.deadline = now + self._max_delay
        self._picks.append(pick)
        self._misses += not pick.hit
        return self.flush(now) if self._misses == self._size else []

    def expire(self, now: float) -> list[_Released]:
        """What goes on because the first has waited long enough."""
        return self.flush(now) if now >= self.deadline else []

    def flush(self, now: float) -> list[_Released]:
        """Everything goes on."""
        released = [(pick, now) for pick in self._picks]
        self._picks, self._misses, self.deadline = [], 0, math.inf
        return released


def _batches(rows: Sequence[tuple[SelectiveDecoder, _Pick]]) -> Iterator[list[tuple[SelectiveDecoder, _Pick]]]:
    """Batches of latents of one width for one decoder, each as large as its streams allow."""

    def alike(row: tuple[SelectiveDecoder, _Pick]) -> tuple[int, int, int]:
        return id(row[0].decoder), row[0].batch_size, len(row[1].segment.latent)

    for (_, size, _), group in groupby(rows, key=alike):
        while batch := list(islice(group, size)):
            yield batch


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection: the many small objects of cutting have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _array(values: Array | Sequence[float], dtype: type[np.floating]) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=dtype)
