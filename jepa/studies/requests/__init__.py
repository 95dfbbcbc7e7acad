"""Streams of requests to a language model: when to answer a text being typed, and when to reuse an earlier answer."""

from jepa.lazy import lazily

_NAMES = {
    "evaluate": ("run",),
    "recurring": ("Answered", "ReuseMethod"),
    "results": (
        *("PerRequest", "RecurringResults", "RequestResults", "Reuse", "ReuseRow", "ReuseSetting"),
        *("Savings", "TypedStreams", "TypingPoint", "TypingResults", "TypingRow"),
    ),
    "sessions": ("CachedModel", "CachedSession", "ScheduledSteps"),
    "typed": ("StateProbe", "TextEndpoint", "TypedStep", "TypedStream", "TypingMethod"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
