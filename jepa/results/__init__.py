"""Typed results documents, JSON in and out, and the analysis of them."""

from jepa.results.base import (
    Code,
    Device,
    Document,
    Fraction,
    Ledger,
    Positive,
    Quantity,
    Ratio,
    Record,
    first_fault,
    is_kind,
    read_document,
    write_files,
)
from jepa.results.documents import AnswerResults, Setting, StreamEvaluation, StreamResults, Sweep, TaskEvaluation

__all__ = [
    "AnswerResults",
    "Code",
    "Device",
    "Document",
    "Fraction",
    "Ledger",
    "Positive",
    "Quantity",
    "Ratio",
    "Record",
    "Setting",
    "StreamEvaluation",
    "StreamResults",
    "Sweep",
    "TaskEvaluation",
    "first_fault",
    "is_kind",
    "read_document",
    "write_files",
]
