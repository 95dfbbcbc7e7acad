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
    read_document,
    write_files,
)
from jepa.results.documents import AnswerEvaluation, AnswerResults, Setting, StreamResults, Sweep

__all__ = [
    "AnswerEvaluation",
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
    "StreamResults",
    "Sweep",
    "first_fault",
    "read_document",
    "write_files",
]
