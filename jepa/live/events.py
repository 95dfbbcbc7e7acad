"""The events of a session: bounded, numbered, so that a reader that comes back goes on where it stopped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from heapq import merge
from itertools import takewhile
from typing import NamedTuple

from jepa.data.json_lines import JsonObject

LASTING = ("emission", "trigger", "source", "session")  # kinds that are kept long; others pass by


class LiveEvent(NamedTuple):
    """Event number `id` of a session, of a kind, with what it says as plain data.

    >>> LiveEvent(1, "emission", {"text": "a dog"}).id
    1
    """

    id: int
    kind: str
    data: JsonObject


class EventLog:
    """The newest events, for any number of readers. None holds up the others: each asks for what came after an id.

    Args:
        lasting: events of the kinds `LASTING` that are kept.
        passing: events of other kinds that are kept.

    >>> log = EventLog()
    >>> log.add("step", {"time": 0.5}), log.add("emission", {"text": "a dog"})
    (1, 2)
    >>> [event.kind for event in log.after(1)]
    ['emission']
    """

    def __init__(self, lasting: int = 10_000, passing: int = 2_000) -> None:
        self._lasting, self._passing = deque[LiveEvent](maxlen=lasting), deque[LiveEvent](maxlen=passing)
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.newest = 0  # id; 0: there is none
        self.closed = False

    def add(self, kind: str, data: JsonObject) -> int:
        """Appends an event, from any thread; returns its id."""
        with self._lock:
            self.newest += 1
            (self._lasting if kind in LASTING else self._passing).append(LiveEvent(self.newest, kind, data))
        self._wake()
        return self.newest

    def after(self, id: int) -> list[LiveEvent]:
        """The events after an id that are still kept, in order."""

        def newer(events: Iterable[LiveEvent]) -> list[LiveEvent]:
            return list(takewhile(lambda event: event.id > id, events))[::-1]

        with self._lock:
            return list(merge(newer(reversed(self._lasting)), newer(reversed(self._passing))))

    async def wait(self, id: int, seconds: float) -> list[LiveEvent]:
        """`after`, once there is something or the log is closed; nothing after so many seconds."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self.newest <= id and not self.closed:
                self._waiting.add(waiter)
            else:
                waiter[1].set()
        try:
            await asyncio.wait_for(waiter[1].wait(), seconds)
        except asyncio.TimeoutError:
            return []
        finally:
            with self._lock:
                self._waiting.discard(waiter)
        return self.after(id)

    def close(self) -> None:
        """No event comes any more."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(event.set)
