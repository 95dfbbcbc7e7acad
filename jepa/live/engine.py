"""The engine: sessions that share one model, the steps of all of them computed in one batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from jepa.data.world import World
from jepa.errors import InputError
from jepa.live.session import Changes, Session, Setup
from jepa.live.sources import Source, parse_source
from jepa.selective import decode_together


class Engine:
    """Runs sessions in a thread of its own, from `start` to `stop`; or `work` runs one pass in the caller's.

    A pass takes the frames that wait of every session, encodes the slots that are new, predicts the steps that are due,
    lets each session decide, and decodes what they closed: each in one batch over all sessions.

    Args:
        setup: what sessions share.
        world: draws the source "world".
        most: sessions at a time.
    """

    def __init__(self, setup: Setup, world: World, most: int = 8) -> None:
        self.setup, self.most, self._world = setup, most, world
        self.sessions: Mapping[str, Session] = {}  # replaced, never changed: any thread may walk it
        self._made = 0
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.error: BaseException | None = None  # that ended the thread

    def add(self, source: str | Source, first: Changes, *, query: str, fast: bool = False) -> Session:
        """A new session. Raises `InputError` for a bad source or setting, or one session too many."""
        found = parse_source(source, self._world) if isinstance(source, str) else source
        with self._lock:
            if len(self.sessions) >= self.most:
                raise InputError(f"sessions must be {self.most} at most, got one more: end one first")
            self._made += 1
            id = str(self._made)
            session = Session(id, self.setup, found, first, query=query, fast=fast, ready=self._wake.set)
            self.sessions = {**self.sessions, id: session}
        return session

    def remove(self, id: str, seconds: float = 0.0) -> None:
        """Ends a session; waits up to so many seconds for its source."""
        with self._lock:
            session = self.sessions[id]
            self.sessions = {key: each for key, each in self.sessions.items() if key != id}
        session.stop(seconds)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ends all sessions, and the thread."""
        for id in self.sessions:
            self.remove(id, seconds)
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def healthy(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def work(self) -> bool:
        """One pass; whether frames waited."""
        model, sessions = self.setup.model, [each for each in self.sessions.values() if each.status != "ended"]
        waited = any(each.mailbox.waiting for each in sessions)
        due = [session for session in sessions if session.guarded(session.take)]
        found = [
            (due[place], states, times) for place, states, times in model.encode_windows([each.windows for each in due])
        ]
        latents = model.predict_together([(states, each.query, each.ledger) for each, states, _ in found])
        decode_together(
            [session.advance(states, rows, at) for (session, states, at), rows in zip(found, latents, strict=True)]
        )
        return waited

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._wake.clear()
                if not self.work():
                    self._wake.wait(0.5)
        except BaseException as error:
            self.error = error
            for session in self.sessions.values():
                session.stop()
            raise
