"""A session: one source, and the chain from its frames over latents, policy, cache and decoder to events.

E width of the latent space, D width of the states.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from jepa.build import build_as
from jepa.config import PolicyConfig
from jepa.data.json_lines import JsonObject
from jepa.data.media import png
from jepa.errors import InputError, check_finite, check_nonnegative, check_positive
from jepa.live.events import EventLog
from jepa.live.recordings import QUERY, Recordings
from jepa.live.sources import Feed, Mailbox, Source, SourceNews
from jepa.models.vl_jepa import VLJEPA, summary, summary_flops
from jepa.models.windows import WindowStream
from jepa.operations import OperationLedger
from jepa.results.documents import Thumbnail
from jepa.selective import (
    CausalPolicy,
    ColourChange,
    Emission,
    EveryStep,
    LatentCache,
    OnTrigger,
    SelectiveDecoder,
    SelectiveEncoding,
    StandingText,
    Trigger,
    TriggerCalibration,
    Waiting,
)

_LOG = logging.getLogger(__name__)
_CACHE = 64  # keys
_STANDING = 0.3  # nats a token: below it a standing text holds
_UNCALIBRATED = 0.6  # cosine, of a trigger without recorded streams
_COUNTERS_EVERY = 0.5  # seconds
_RECENT = 1000  # latencies that percentiles are of


@dataclass(frozen=True)
class Setup:
    """What all sessions share.

    Args:
        model: of which X-Encoder, Predictor, Y-Encoder and Y-Decoder serve all of them.
        policies: to choose from.
        step_rate_hz: steps a second.
        recordings: to calibrate triggers on.
        false_alarms_per_hour: that they are calibrated to.
        keep_seconds: of a stream, for saving.
    """

    model: VLJEPA
    policies: Mapping[str, PolicyConfig]
    step_rate_hz: float = 2.0
    recordings: Recordings | None = None
    false_alarms_per_hour: float = 1.0
    keep_seconds: float = 3600.0

    def default(self, policy: str) -> float:
        """The value of a policy's parameter unless one is given."""
        if policy not in self.policies:
            raise InputError(f"policy must be one of {', '.join(self.policies)}, got {policy!r}")
        return float(self.policies[policy].policy[self.policies[policy].parameter])

    def policy(self, name: str, value: float) -> CausalPolicy:
        """A policy at a value of its parameter."""
        config = self.policies[name]
        node = {key: each for key, each in config.policy.items() if key != config.parameter}
        return build_as(CausalPolicy, f"policies.{name}.policy", node, **{config.parameter: value})  # type: ignore[type-abstract]

    def watch(self, sentence: str, per_hour: float | None = None, threshold: float | None = None) -> Watched:
        """A trigger for a sentence, calibrated unless its threshold is given."""
        if not sentence.strip():
            raise InputError(f"a trigger must be a sentence, got {sentence!r}")
        embedding = self.model.embed_all([sentence]).numpy()[0]
        if threshold is not None:
            return Watched(sentence, Trigger(embedding, threshold), None)
        rate = per_hour or self.false_alarms_per_hour
        found = None if self.recordings is None else self.recordings.calibrate(embedding, sentence, rate)
        return Watched(sentence, Trigger(embedding, _UNCALIBRATED if found is None else found.threshold), found)


@dataclass(frozen=True)
class Watched:
    """A sentence, its trigger, and how that was calibrated.

    >>> Watched("a dog", Trigger(np.ones(1), 0.5), None).described(QUERY)["threshold"]
    0.5
    """

    sentence: str
    trigger: Trigger
    calibration: TriggerCalibration | None

    def described(self, query: str) -> JsonObject:
        """For the page, with what cannot be promised."""
        note, rate = "not calibrated: nothing is promised", None
        if self.calibration is not None:
            note, rate = self.calibration.note, self.calibration.per_hour
            note += "" if query == QUERY else f". They were asked {QUERY!r}: nothing is promised under another query"
        threshold = self.trigger.threshold
        return {"sentence": self.sentence, "threshold": threshold, "false_alarms_per_hour": rate, "note": note}


@dataclass(frozen=True)
class Changes:
    """What is to change of a running session; None leaves a setting as it is. A `threshold` is that of the policy.

    >>> Changes(paused=True).query is None
    True
    """

    policy: str | None = None
    threshold: float | None = None
    cache_threshold: float | None = None  # below 0: nothing is taken from the cache
    uniform_rate_hz: float | None = None
    query: str | None = None
    paused: bool | None = None
    triggers: Sequence[Watched] | None = None


@dataclass(frozen=True)
class KeptStep:
    """A step as it is saved: encoder calls are those since the step before.

    >>> KeptStep(0.5, np.ones(2), np.ones(3), 0.0, 2, 30).time
    0.5
    """

    time: float
    latent: np.ndarray  # (E,)
    state: np.ndarray  # (D,), the summary of its states
    change: float
    encoder_calls: int
    summary_flops: int


class Session:
    """A source that is decoded selectively. The engine runs it; any thread may read, change and stop it.

    Args:
        id: among the sessions of the engine.
        setup: what it shares with others.
        source: where its frames come from.
        first: its settings, with a policy at least.
        query: asked of every step.
        fast: without dropping frames.
        ready: called when frames have come.
    """

    def __init__(
        self,
        id: str,
        setup: Setup,
        source: Source,
        first: Changes,
        *,
        query: str = QUERY,
        fast: bool = False,
        ready: Any = lambda: None,
    ) -> None:
        model = setup.model
        self.id, self.source, self.query, self._setup, self._fast = id, source, query, setup, fast
        self.log, self.ledger, self.lock = EventLog(), OperationLedger(), threading.RLock()
        self.started_at, self._ready = time.time(), ready
        self._steps = EveryStep()
        selection = SelectiveEncoding(ColourChange(), self._steps)
        self.windows = WindowStream(model, setup.step_rate_hz, self.ledger, selection)
        self._next = 0  # number of the next frame
        self.mailbox = Mailbox(model.x_encoder.size, model.fps, model.frames, ready)
        self.watched: tuple[Watched, ...] = ()
        self.paused, self.status, self.message = False, "running", ""
        self._ended = self._stepped = False  # the source has; since the last finish
        self._arrived: dict[int, float] = {}  # when the newest frames arrived, by number
        self.kept = deque[KeptStep](maxlen=max(1, round(setup.keep_seconds * setup.step_rate_hz)))
        self.emissions = deque[Emission](maxlen=10_000)
        self._thumbnails = deque[Thumbnail](maxlen=36)
        self._latencies, self._compute = deque[float](maxlen=_RECENT), deque[float](maxlen=_RECENT)
        self._uniform_rate, self._encoder_calls, self._counted_at = min(1.0, setup.step_rate_hz), 0, 0.0
        self._policy_name, self._value, self._standing = "", 0.0, False
        self._thresholds = {False: -1.0, True: _STANDING}  # of the two kinds of caches
        with self.lock:
            self._apply(first)
        self._feed = Feed(source, self.mailbox, self._tell, fast=fast)

    # --- What others read and change.

    def described(self) -> JsonObject:
        """The session for clients."""
        with self.lock:
            return {
                "id": self.id,
                "source": self.source.name,
                "query": self.query,
                "status": "paused" if self.paused and self.status != "ended" else self.status,
                "message": self.message,
                "started_at": self.started_at,
                "step_rate_hz": self._setup.step_rate_hz,
                "window_seconds": self._setup.model.window,
                "settings": {
                    "policy": self._policy_name,
                    "threshold": self._value,
                    "cache_threshold": self._thresholds[self._standing],
                    "uniform_rate_hz": self._uniform_rate,
                },
                "triggers": [each.described(self.query) for each in self.watched],
            }

    def change(self, changes: Changes) -> JsonObject:
        """Settings that count from the next step on; returns the session. A bad one raises and changes nothing."""
        with self.lock:
            self._apply(changes)
            return self._say()

    def stop(self, seconds: float = 0.0) -> None:
        """Ends source and session; waits up to so many seconds for the thread of the source."""
        self._feed.stop(seconds)
        with self.lock:
            self._end("stopped")
        self.log.close()

    @property
    def alive(self) -> bool:
        """Whether the source's thread runs."""
        return self._feed.alive

    def counters(self) -> JsonObject:
        """What was counted; `selective` is the ledger to the digit."""
        with self.lock:
            ledger, decoder, predictor = self.ledger, self.ledger.decoder, self.ledger.predictor
            calls = uniform_decodes(ledger.step_count, self._setup.step_rate_hz, self._uniform_rate)
            each, looked_at = max(1, decoder.calls), min(1.0, self._uniform_rate * self._setup.model.window)
            return {
                "time": self._next / self._setup.model.fps,
                "steps": ledger.step_count,
                "frames": {"taken": self.mailbox.taken, "dropped": self.mailbox.dropped},
                "selective": {
                    "decoder_calls": decoder.calls,
                    "decoder_flops": decoder.flops,
                    "decoder_seconds": decoder.seconds,
                    "cache_lookups": ledger.cache.lookups,
                    "cache_hits": ledger.cache.hits,
                    "predictor_calls": ledger.predictor.calls,
                    "encoder_calls": ledger.encoder.calls,
                    "flops": ledger.total_flops,
                    "seconds": ledger.total_seconds,
                },
                "uniform": {
                    "rate_hz": self._uniform_rate,
                    "decoder_calls": calls,
                    "decoder_flops": calls * decoder.flops / each,
                    "decoder_seconds": calls * decoder.seconds / each,
                    # What it does not decode it need not compute: windows in which no moment is due are left out.
                    "flops": looked_at * ledger.encoder.flops
                    + calls * (predictor.flops / max(1, predictor.calls) + decoder.flops / each),
                },
                "latency": percentiles(list(self._latencies)),
                "compute": percentiles(self.compute_seconds()),
            }

    def compute_seconds(self) -> list[float]:
        """From the arrival of a step's last frame to the text that the step brought about, of the newest texts."""
        with self.lock:
            return list(self._compute)

    def thumbnails(self) -> tuple[Thumbnail, ...]:
        """Pictures of the newest minutes, one every 5 s at most."""
        with self.lock:
            return tuple(self._thumbnails)

    # --- What the engine does.

    def guarded(self, work: Callable[[], bool | None]) -> bool:
        """The result of some work on this session; an error ends this session, and no other."""
        try:
            return bool(work())
        except Exception as error:
            self._fail(error)
            return False

    def _fail(self, error: Exception) -> None:
        _LOG.exception("session %s", self.id)
        with self.lock:
            self._stepped = False
            self._end(f"failed: {error}")

    def take(self) -> bool:
        """Frames that wait go into windows; whether steps are due."""
        if (run := self.mailbox.take()) is None:
            if self._ended and not self.mailbox.waiting:
                with self.lock:
                    self._end(self.message)
            return False
        with self.lock:
            if run.first != self._next:
                self.windows.skip(run.first)
            self._next = run.first + len(run.frames)
            if not self._thumbnails or self._next >= (self._thumbnails[-1].time + 5) * self._setup.model.fps:
                at = (self._next - 1) / self._setup.model.fps
                self._thumbnails.append(Thumbnail(time=at, png=png(run.frames[-1])))
            self._arrived = {number: at for number, at in self._arrived.items() if number >= run.first - 64}
            self._arrived.update(enumerate(run.arrived, run.first))
            self.ledger.stream(len(run.frames) / self._setup.model.fps)
            self.windows.push(run.frames)
        return bool(self.windows.due)

    def advance(self, states: Tensor, latents: np.ndarray, times: np.ndarray) -> Generator[Waiting, None, None]:
        """Steps that were computed: states (T, N, D), latents (T, E) at `times` (T,); work for `decode_together`."""
        try:
            summaries, calls = summary(states), self.ledger.encoder.calls
            flops = summary_flops(states) // len(states)
            with self.lock:
                if self.status == "ended":
                    return
                changes = self._steps.changes[: len(times)]
                del self._steps.changes[: len(times)]
                for row, (latent, at) in enumerate(zip(latents, times.tolist(), strict=True)):
                    new, self._encoder_calls = calls - self._encoder_calls, calls
                    self.kept.append(KeptStep(at, latent, summaries[row], changes[row], new, flops))
                    yield from self._step(latent, at)
                if time.monotonic() - self._counted_at >= _COUNTERS_EVERY:
                    self._count()
        except Exception as error:
            self._fail(error)

    def _step(self, latent: np.ndarray, at: float) -> Generator[Waiting, None, None]:
        self._stepped = True
        emitted = yield from self._selective.stepping(latent, at)
        rates, steps = (self._setup.step_rate_hz, self._uniform_rate), self.ledger.step_count
        uniform = uniform_decodes(steps, *rates) > uniform_decodes(steps - 1, *rates)
        signal = self._selective.policy.signal if isinstance(self._selective.policy, CausalPolicy) else None
        step = {"time": at, "step": steps, "signal": signal}
        self.log.add("step", step | {"decoded": bool(emitted), "uniform": uniform})
        for watched in self.watched:
            score, alarm = watched.trigger.step(latent, at)
            if alarm:
                raised = {"time": at, "score": score, "threshold": watched.trigger.threshold}
                self.log.add("trigger", {"sentence": watched.sentence, **raised})
        last = round((at + self._setup.model.window / 2) * self._setup.model.fps) - 1
        self._emit(emitted, self._arrived.get(last, time.monotonic()))

    def _emit(self, emitted: Sequence[Emission], arrived: float | None = None) -> None:
        """`arrived`: when the newest frame did, of the step that brought the emissions about."""
        self.emissions.extend(emitted)
        for emission in emitted:
            late = emission.emitted_at - emission.start
            self._latencies.append(late)
            if arrived is not None:
                self._compute.append(time.monotonic() - arrived)
            data = {key: value for key, value in asdict(emission).items() if key != "time"}
            self.log.add("emission", data | {"latency_seconds": late})

    def _count(self) -> None:
        self._counted_at = time.monotonic()
        self.log.add("counters", self.counters())

    def _finish_stream(self) -> None:
        """What is open is decoded: the text of the newest steps."""
        if self._stepped:
            self._stepped = False
            self._emit(self._selective.finish())

    def _end(self, message: str) -> None:
        if self.status == "ended":
            return
        self._finish_stream()
        self.status, self.message = "ended", message
        self._count()
        self._say()

    def _say(self) -> JsonObject:
        described = self.described()
        self.log.add("session", described)
        return described

    def _tell(self, news: SourceNews) -> None:
        """From the thread of the source."""
        if news.message and news.attempt <= 1:
            _LOG.warning("session %s: %s", self.id, news.message)
        self.log.add("source", asdict(news))
        with self.lock:
            if news.status == "ended":
                self.message, self._ended = news.message, True
            else:
                self.status = "running" if news.status == "connected" else "reconnecting"
                self.message = news.message
                self._say()
        self._ready()

    # --- Settings.

    def _apply(self, changes: Changes) -> None:
        name = self._policy_name if changes.policy is None else changes.policy
        value = self._value if changes.policy is None else self._setup.default(name)
        value = value if changes.threshold is None else check_nonnegative("threshold", changes.threshold)
        policy = self._setup.policy(name, value)  # checks come before anything changes
        rate = self._uniform_rate if changes.uniform_rate_hz is None else changes.uniform_rate_hz
        if check_positive("uniform_rate_hz", rate) > (most := self._setup.step_rate_hz):
            raise InputError(f"uniform_rate_hz must be at most {most:g}, the steps a second, got {rate:g}")
        config = self._setup.policies[name].cache
        standing = config is not None and config.standing
        if changes.cache_threshold is not None:
            self._thresholds[standing] = check_finite("cache_threshold", changes.cache_threshold)
        self._uniform_rate = rate
        if changes.triggers is not None:
            self.watched = tuple(changes.triggers)
        if changes.query is not None and changes.query != self.query:
            self._finish_stream()
            self.query = changes.query
        if changes.paused is not None:
            self.paused = changes.paused
            self.mailbox.pause(changes.paused)
            self._count()
        watches = changes.triggers is not None and isinstance(policy, OnTrigger)
        if changes.policy is not None or watches or (value != self._value and not hasattr(policy, "threshold")):
            self._finish_stream()
            self._decode_by(policy, standing)
        elif value != self._value:
            self._selective.policy.threshold = value  # type: ignore[attr-defined]
        self._policy_name, self._value = name, value
        self._cache.threshold = self._thresholds[standing]

    def _decode_by(self, policy: CausalPolicy, standing: bool) -> None:
        """From the next step on; a cache of the same kind keeps its texts."""
        model = self._setup.model
        if isinstance(policy, OnTrigger):
            triggers = [each.trigger for each in self.watched]
            policy.watch(np.array([each.embedding for each in triggers]), [each.threshold for each in triggers])
        if self._policy_name == "" or standing != self._standing:
            threshold, self._standing = self._thresholds[standing], standing
            self._cache = StandingText(threshold, model) if standing else LatentCache(threshold, _CACHE, shared=True)
        self._selective = SelectiveDecoder(policy, model, self.ledger, cache=self._cache, latent_delay=model.window / 2)


def uniform_decodes(steps: int, step_rate_hz: float, rate_hz: float) -> int:
    """How many of the first steps uniform decoding decodes: one for each due moment, k / `rate_hz` seconds.

    >>> uniform_decodes(8, 2.0, 1.0), uniform_decodes(8, 2.0, 9.0)
    (4, 8)
    """
    return min(steps, math.ceil(steps * rate_hz / step_rate_hz - 1e-9))


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """The median, and what 95 and 99 % are below; None of nothing.

    >>> percentiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    if not seconds:
        return dict.fromkeys(("p50", "p95", "p99"))
    found = np.percentile(seconds, (50, 95, 99)).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))
