"""Live streams: sources, sessions that share a model, a server. The names below are imported when first used."""

from __future__ import annotations

from jepa.lazy import lazily

_HOMES = {
    **dict.fromkeys(("EndlessWorld", "Feed", "FrameClock", "Mailbox", "Run", "Source", "SourceNews"), "sources"),
    **dict.fromkeys(("EventLog", "LiveEvent"), "events"),
    **dict.fromkeys(("Changes", "Session", "Setup", "Watched"), "session"),
    **dict.fromkeys(("Engine",), "engine"),
    **dict.fromkeys(("Recordings",), "recordings"),
    **dict.fromkeys(("LimitsConfig", "LiveConfig"), "configs"),
    **dict.fromkeys(("Body", "NewSession", "NewSettings", "Operation", "WatchedSentence"), "api"),
    **dict.fromkeys(("Guard", "Rate", "Server"), "server"),
    **dict.fromkeys(("KeptStep",), "session"),
    **dict.fromkeys(("Saver",), "saving"),
}
__all__ = list(_HOMES)

__getattr__ = lazily(__name__, _HOMES)
