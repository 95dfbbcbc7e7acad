"""Typed results documents, JSON in and out, and the analysis of them."""

from jepa.metrics import CurveDifference, Interval
from jepa.operations import PARTS, TRAINING_PARTS, PartCount
from jepa.results import analysis, documents
from jepa.results.analysis import Ratios
from jepa.results.bars import Measured, NotMetError, Requirement
from jepa.results.base import (
    Code,
    Device,
    Document,
    Fraction,
    Positive,
    Quantity,
    Ratio,
    Record,
    check_folder,
    is_kind,
    leaves,
    read_document,
    write_files,
)
from jepa.results.documents import *  # noqa: F403

__all__ = [
    "PARTS",
    "TRAINING_PARTS",
    "Code",
    "CurveDifference",
    "Device",
    "Document",
    "Fraction",
    "Interval",
    "Measured",
    "NotMetError",
    "PartCount",
    "Positive",
    "Quantity",
    "Ratio",
    "Ratios",
    "Record",
    "Requirement",
    "analysis",
    "check_folder",
    "is_kind",
    "leaves",
    "read_document",
    "write_files",
]
__all__ += [name for name, each in vars(documents).items() if getattr(each, "__module__", "") == documents.__name__]
