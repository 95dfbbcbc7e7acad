"""Streams of requests to a language model: when to answer a text being typed, and when to reuse an earlier answer."""

from jepa.studies.requests.report import report
from jepa.studies.requests.results import RecurringResults, RequestResults, TypingResults
from jepa.studies.requests.run import evaluate_requests, run
from jepa.studies.requests.streams import TypingStyle

__all__ = [
    "RecurringResults",
    "RequestResults",
    "TypingResults",
    "TypingStyle",
    "evaluate_requests",
    "report",
    "run",
]
