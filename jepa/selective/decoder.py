"""The selective decoder: a policy chooses what to decode, a decoder turns it into text, a ledger counts.

Dimension letters: T steps of a stream, E width of the latent space, N latents to decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from jepa.errors import InputError
from jepa.operations import OperationLedger
from jepa.selective.policies import Policy, Segment

NORM_TOLERANCE = 1e-3

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """One decoded latent.

    Args:
        text: the text.
        tokens: tokens generated for it, the end token included.
        forward_passes: passes through the decoder's network that it took, counted as if it were decoded
            alone.
    """

    text: str
    tokens: int
    forward_passes: int


class Decoder(Protocol):
    """What turns latents into text. The text of a latent must not depend on the others in the call."""

    def decode(self, latents: torch.Tensor) -> Sequence[Decoded]:
        """Decode latents (N, E), float32 of unit norm on the CPU, N >= 1; return N results in their order."""
        ...


@dataclass(frozen=True)
class Emission:
    """A text that was emitted for a segment of the stream; all times in seconds.

    Args:
        text: the text.
        time: the moment it stands for.
        start: time of the first step it covers.
        end: time of the last step it covers.
        emitted_at: when it can be known: the time of the step that closed the segment, and the latent delay.
        source: where the text comes from: "decoder".
    """

    text: str
    time: float
    start: float
    end: float
    emitted_at: float
    source: str


class SelectiveDecoder:
    """Decodes a stream of latents where its policy says so.

    ``step`` for each latent of a live stream and ``finish`` at its end, or ``run`` for a recorded one, give
    the same emissions and the same counts::

        decoder = SelectiveDecoder(Gate(1.0), model.decoder)
        for latent, time in stream:
            for emission in decoder.step(latent, time):
                print(emission.text)
        decoder.finish()

    Every latent is checked before the policy sees it: one line says what is wrong with which step, and
    nothing has changed, so that a live stream goes on with its next good step.

    The ledger is told each step, and of the decoder one call per latent decoded, its tokens and forward
    passes as reported by the decoder, its wall time, and the latency of each emission: from the start of
    its segment until `emitted_at`. Encoder and predictor ran before, and stream durations are known to
    whoever reads the streams: they are theirs to count.

    Args:
        policy: which latents to decode. It must not be shared with another decoder.
        decoder: turns latents into text.
        ledger: where operations are counted; a new one if not given, as `self.ledger`.
        latent_delay: seconds from the time a latent is stamped with (the centre of its window) until it can
            be known.
        batch_size: most latents in one call of the decoder.

    Raises:
        InputError: `latent_delay` is not finite and >= 0, or `batch_size` is not a whole number >= 1.
    """

    def __init__(
        self,
        policy: Policy,
        decoder: Decoder,
        ledger: OperationLedger | None = None,
        *,
        latent_delay: float = 0.0,
        batch_size: int = 256,
    ) -> None:
        if not (math.isfinite(latent_delay) and latent_delay >= 0):
            raise InputError(f"latent_delay must be finite and >= 0, got {latent_delay}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size must be a whole number >= 1, got {batch_size}")
        self.policy = policy
        self.decoder = decoder
        self.ledger = OperationLedger() if ledger is None else ledger
        self.latent_delay = latent_delay
        self.batch_size = batch_size
        self.start()

    def start(self) -> None:
        """Begin a new stream; what is open of a stream that was not finished is dropped."""
        self.policy.start()
        self._steps = 0
        self._width = 0
        self._time = -math.inf

    def step(self, latent: Array, time: float) -> list[Emission]:
        """Take the next latent of a live stream.

        Args:
            latent: (E,) of unit norm.
            time: its time in seconds, after that of the step before.

        Returns:
            The emissions that this step brings about.

        Raises:
            InputError: the latent or the time breaks a rule. Nothing has changed.
        """
        row = _array(latent, np.float32)
        if row.ndim != 1 or row.size == 0:
            raise InputError(f"a latent must have the shape (E,), got {row.shape} at step {self._steps}")
        if self._steps and len(row) != self._width:
            raise InputError(
                f"latents of one stream must have the same width, {self._width} so far, "
                f"got {len(row)} at step {self._steps}"
            )
        _check_steps(row[None], np.array([time], dtype=np.float64), self._steps, self._time)
        return self._emit(self._advance(row, float(time)))

    def finish(self) -> list[Emission]:
        """End the live stream and return its last emissions; the next `step` begins a new one.

        Raises:
            InputError: there was no step.
        """
        if self._steps == 0:
            raise InputError("stream is empty: finish() needs at least one step before it")
        return self._emit(self._end())

    def run(self, latents: Array, times: Array | Sequence[float]) -> list[Emission]:
        """Decode a recorded stream from its start to its end.

        Args:
            latents: (T, E) of unit norm.
            times: (T,) seconds, strictly increasing.

        Returns:
            The emissions in their order.

        Raises:
            InputError: a step breaks a rule, there is none, or a live stream is still open. Nothing has
                changed.
        """
        return self.run_many([(latents, times)])[0]

    def run_many(self, streams: Sequence[tuple[Array, Array | Sequence[float]]]) -> list[list[Emission]]:
        """Decode many recorded streams, each as by `run`, with their latents batched together.

        Args:
            streams: (latents (T, E), times (T,)) of each stream; T and E may differ between them.

        Returns:
            The emissions of each stream.

        Raises:
            InputError: as `run`, naming the stream if there are several. Nothing has changed.
        """
        if self._steps:
            raise InputError(
                f"a recorded stream must not begin inside a live one, open for {self._steps} steps: "
                "call finish() or start() first"
            )
        checked = []
        for number, (latents, times) in enumerate(streams):
            try:
                checked.append(_check_stream(latents, times))
            except InputError as error:
                raise InputError(f"stream {number}: {error}" if len(streams) > 1 else str(error)) from None
        chosen = []
        for rows, seconds in checked:
            closed: list[_Closed] = []
            for row, time in zip(rows, seconds.tolist(), strict=True):
                closed += self._advance(row, time)
            chosen.append(closed + self._end())
        emissions = iter(self._emit([closed for stream in chosen for closed in stream]))
        return [[next(emissions) for _ in stream] for stream in chosen]

    def _advance(self, row: np.ndarray, time: float) -> list[_Closed]:
        """Give the policy one checked step; return what it closes."""
        self._steps += 1
        self._width, self._time = len(row), time
        self.ledger.steps(1)
        return [_Closed(segment, time + self.latent_delay) for segment in self.policy.step(row, time)]

    def _end(self) -> list[_Closed]:
        closed = [_Closed(segment, self._time + self.latent_delay) for segment in self.policy.finish()]
        self.start()
        return closed

    def _emit(self, closed: Sequence[_Closed]) -> list[Emission]:
        """Decode segments, batch by batch, and count."""
        emissions: list[Emission] = []
        for batch in _batches(closed, self.batch_size):
            latents = torch.from_numpy(np.stack([item.segment.latent for item in batch]))
            with self.ledger.timed("decoder"):
                results = self.decoder.decode(latents)
            if len(results) != len(batch):
                raise RuntimeError(f"the decoder must return one result per latent, {len(batch)}, got {len(results)}")
            for item, decoded in zip(batch, results, strict=True):
                self.ledger.count("decoder", calls=1, forward_passes=decoded.forward_passes, tokens=decoded.tokens)
                self.ledger.emission(item.emitted_at - item.segment.start)
                emissions.append(
                    Emission(
                        decoded.text,
                        time=item.segment.time,
                        start=item.segment.start,
                        end=item.segment.end,
                        emitted_at=item.emitted_at,
                        source="decoder",
                    )
                )
        return emissions


@dataclass(frozen=True)
class _Closed:
    """A segment that the policy closed, and when."""

    segment: Segment
    emitted_at: float


def _batches(closed: Sequence[_Closed], size: int) -> list[list[_Closed]]:
    """Cut into batches of at most `size` latents of one width."""
    batches: list[list[_Closed]] = []
    for item in closed:
        full = not batches or len(batches[-1]) == size
        if full or batches[-1][0].segment.latent.shape != item.segment.latent.shape:
            batches.append([])
        batches[-1].append(item)
    return batches


def _array(values: Array | Sequence[float], dtype: type[np.floating]) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64 if dtype is np.float64 else torch.float32).numpy()
    return np.asarray(values, dtype=dtype)


def _check_stream(latents: Array, times: Array | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A recorded stream as float32 (T, E) and float64 (T,), or an InputError that says why it is none."""
    rows, seconds = _array(latents, np.float32), _array(times, np.float64)
    if seconds.ndim != 1:
        raise InputError(f"times must have the shape (T,), got {seconds.shape}")
    if rows.size == 0 and seconds.size == 0:
        raise InputError("stream is empty: latents and times must hold at least one step, got 0")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"latents must have the shape (T, E), got {rows.shape}")
    if len(rows) != len(seconds):
        raise InputError(f"latents and times must have equal lengths, got {len(rows)} and {len(seconds)}")
    _check_steps(rows, seconds, 0, -math.inf)
    return rows, seconds


def _check_steps(rows: np.ndarray, times: np.ndarray, first: int, before: float) -> None:
    """Refuse the earliest step of rows (T, E) at times (T,) that breaks a rule.

    `first` is the index in the stream of their first step, `before` the time of the step before it.
    """
    norms = np.sqrt(np.einsum("te,te->t", rows, rows, dtype=np.float64))
    later = np.append(before, times[:-1]) < times
    good = np.isfinite(norms) & (np.abs(norms - 1) <= NORM_TOLERANCE) & np.isfinite(times) & later
    if good.all():
        return
    i = int(np.argmin(good))
    where = f"at step {first + i}"
    wrong = np.flatnonzero(~np.isfinite(rows[i]))
    if len(wrong):
        raise InputError(f"latents must be finite, got {rows[i, wrong[0]]} {where} (dimension {wrong[0]})")
    if abs(norms[i] - 1) > NORM_TOLERANCE:
        raise InputError(f"latents must have unit norm within {NORM_TOLERANCE}, got norm {norms[i]:.6g} {where}")
    if not np.isfinite(times[i]):
        raise InputError(f"times must be finite, got {times[i]} {where}")
    previous = times[i - 1] if i else before
    raise InputError(f"times must strictly increase, got {times[i]} after {previous} {where}")
