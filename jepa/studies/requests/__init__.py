"""Streams of requests to a language model: when to answer a text being typed, and when to reuse an earlier answer."""

from jepa.studies.requests.recurring import Answered, ReuseMethod
from jepa.studies.requests.report import report
from jepa.studies.requests.results import (
    PerRequest,
    RecurringResults,
    RequestResults,
    Reuse,
    ReuseRow,
    ReuseSetting,
    Savings,
    TypedStreams,
    TypingPoint,
    TypingResults,
    TypingRow,
)
from jepa.studies.requests.run import run
from jepa.studies.requests.sessions import CachedModel, CachedSession, ScheduledSteps
from jepa.studies.requests.streams import TypedStep, TypedStream, TypingStyle
from jepa.studies.requests.typed import StateProbe, TextEndpoint, TypingMethod

__all__ = [
    "Answered", "CachedModel", "CachedSession", "PerRequest", "RecurringResults", "RequestResults", "Reuse",
    "ReuseMethod", "ReuseRow", "ReuseSetting", "Savings", "ScheduledSteps", "StateProbe", "TextEndpoint", "TypedStep",
    "TypedStream", "TypedStreams", "TypingMethod", "TypingPoint", "TypingResults", "TypingRow", "TypingStyle",
    "report", "run",
]  # fmt: skip
