"""A live stream of requests through a `SelectiveDecoder`, and a cache of answers that knows words and asks the model.

    session = RequestSession(model)
    cache = AnswerCache(0.03, capacity=4096, session=session)
    during, final = follow(steps, Uniform(1000.0), session, longest=64, read=read_latent, cache=cache)

E: embedding dimensions; D: width of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np

from jepa.data.pairs import Example
from jepa.models.llm_jepa import RequestDecoder, RequestSession
from jepa.selective import Emission, LatentCache, Policy, SelectiveDecoder
from jepa.selective.cache import CacheEntry

_CODES = 8  # width of latents that only name a step

Read = Callable[[RequestSession, Example], np.ndarray]


class AnswerCache(LatentCache):
    """A latent cache of answers that may also know a request by its words, and ask the model about what it finds.

    A request whose `name` was answered before gets that answer at once. Otherwise the nearest latent within `threshold`
    offers its answer, which the model, if there is a `session`, may refuse (`RequestSession.agrees`).

    Args:
        threshold: as of `LatentCache`.
        capacity: as of `LatentCache`; as many names are held.
        name: what makes two requests one; None: nothing does.
        session: verifies an answer from a near latent; None: it is taken.
        tolerance: of the verification, in nats.
    """

    def __init__(
        self,
        threshold: float,
        capacity: int,
        *,
        name: Callable[[Example], str] | None = None,
        session: RequestSession | None = None,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(threshold, capacity)
        self.name, self.session, self.tolerance = name, session, tolerance

    def clear(self) -> None:
        super().clear()
        self._named: OrderedDict[str, CacheEntry] = OrderedDict()
        self._request: Example | None = None

    def hear(self, request: Example) -> bool:
        """The request that will be looked up next; whether it is known by name."""
        self._request = request
        return self.name is not None and self.name(request) in self._named

    def look_up(self, latent: np.ndarray) -> tuple[CacheEntry, bool]:
        request = self._request
        if request is None:
            raise RuntimeError("an AnswerCache must hear a request before each look-up")
        if self.name is None:
            return self._near(latent, request)
        name, hit = self.name(request), self.hear(request)
        if hit:
            entry = self._named[name]
        else:
            entry, hit = self._near(latent, request)
        self._named[name] = entry
        self._named.move_to_end(name)
        if len(self._named) > self.capacity:
            self._named.popitem(last=False)
        return entry, hit

    def discard(self, entries: Iterable[CacheEntry]) -> None:
        lost = set(entries)
        super().discard(lost)
        for name in [name for name, entry in self._named.items() if entry in lost]:
            del self._named[name]

    def _near(self, latent: np.ndarray, request: Example) -> tuple[CacheEntry, bool]:
        entry, near = super().look_up(latent)
        if not near or self.session is None or entry.decoded is None:
            return entry, near
        if self.session.agrees(request, entry.decoded.text, self.tolerance):
            return entry, True
        return self._add(latent), False


def follow(
    steps: Iterable[tuple[Example, float]],
    policy: Policy,
    session: RequestSession,
    longest: int,
    read: Read | None,
    reader: RequestSession | None = None,
    cache: LatentCache | None = None,
) -> tuple[list[Emission], list[Emission]]:
    """One stream through a `SelectiveDecoder`: what is emitted while it runs, and at its end.

    Args:
        steps: requests and their times.
        policy: of this stream.
        session: answers, and counts.
        longest: most tokens of an answer.
        read: gives the latent of a request; None: latents that only name the step.
        reader: the session that `read` is called with, where it is another model's.
        cache: of this stream.
    """
    decoder = RequestDecoder(session, longest, memory=2)
    selective = SelectiveDecoder(policy, decoder, session.ledger, cache=cache)
    emissions: list[Emission] = []
    width = None
    for index, (request, time) in enumerate(steps):
        named = isinstance(cache, AnswerCache) and cache.hear(request)
        if read is None or (named and width is not None):  # known by its words: the latent is not needed
            latent = np.eye(width or _CODES, dtype=np.float32)[index % (width or _CODES)]
        else:
            latent = read(reader or session, request)
            width = len(latent)
        decoder.hear([request], latent[None])
        emissions += selective.step(latent, time)
    return emissions, selective.finish()


def read_latent(session: RequestSession, request: Example) -> np.ndarray:
    """The predicted embedding of a request's answer (E,), of unit norm."""
    return session.predict(request)


def read_state(session: RequestSession, request: Example) -> np.ndarray:
    """The encoder's last state (D,), of unit norm."""
    return session.state(request)
