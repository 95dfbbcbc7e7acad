"""Documents of the request studies. Fractions lie between 0 and 1, FLOPs are whole operations, times seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from jepa.metrics import Interval
from jepa.operations import OperationLedger
from jepa.results.base import Code, Count, Device, Document, Fraction, Quantity, Ratio, Record


class PerRequest(Record):
    """What a request takes on average."""

    decoder_calls: Quantity
    decoder_passes: Quantity
    tokens: Quantity
    encoder_flops: Quantity
    predictor_flops: Quantity
    decoder_flops: Quantity
    flops: Quantity

    @classmethod
    def of(cls, ledger: OperationLedger, requests: int) -> PerRequest:
        """The counts of a ledger over the number of requests."""
        decoder = ledger.decoder
        return cls(
            decoder_calls=decoder.calls / requests,
            decoder_passes=decoder.forward_passes / requests,
            tokens=decoder.tokens / requests,
            encoder_flops=ledger.encoder.flops / requests,
            predictor_flops=ledger.predictor.flops / requests,
            decoder_flops=decoder.flops / requests,
            flops=ledger.total_flops / requests,
        )


# --- Requests typed word by word.


class Savings(Record):
    """Uniform decoding over a method; None where the method decodes nothing."""

    calls: Ratio | None
    flops: Ratio | None
    forward_passes: Ratio | None


class TypingPoint(Record):
    """A method at one value of its parameter, on the test streams."""

    value: float
    calls_per_request: Quantity
    exact_match: Fraction


class TypingRow(Record):
    """A method on the test streams, at the value chosen on the calibration streams.

    `exact_match` is of the answer in force at the last word of a request, `settled` of the one in force when the next
    request begins. `difference` is to uniform decoding. `chosen`: a value qualified on calibration; `reached`: the
    quality is kept.
    """

    name: str
    label: str
    parameter: str
    value: float
    chosen: bool
    reached: bool
    wait_seconds: Quantity
    exact_match: Interval
    settled: Interval
    difference: Interval | None
    saving: Savings
    per_request: PerRequest
    curve: Annotated[tuple[TypingPoint, ...], Field(min_length=1)]


class TypedStreams(Record):
    """The streams of a split; `corrections` are wrong words among the `steps`."""

    streams: Count
    requests: Count
    steps: Count
    corrections: Count


class TypingResults(Record):
    """Methods on typed requests, uniform decoding first."""

    study: Literal["typing"] = "typing"
    calibration: TypedStreams
    test: TypedStreams
    rows: Annotated[tuple[TypingRow, ...], Field(min_length=1)]


# --- Requests that recur.


class Reuse(Record):
    """A method at the thresholds of the two halves (none where it has no threshold).

    `error`: fraction of requests whose reused answer is wrong where the model's own is right. `differing_hits` are not
    the model's own answer. `beyond_exact` is the fraction of decodes saved beyond exact text. Differences and ratios
    are to always decoding.
    """

    values: tuple[float, ...]
    hits: Interval
    differing_hits: Interval
    error: Interval
    exact_match: Interval
    exact_match_difference: Interval
    beyond_exact: float
    flops_ratio: float
    passes_ratio: float
    per_request: PerRequest


class ReuseRow(Record):
    """A method at a requested error; `found` is None where no threshold holds that error."""

    name: str
    label: str
    requested_error: Fraction | None
    found: Reuse | None


class ReuseSetting(Record):
    """All methods on streams of one kind."""

    streams: Count
    requests: Count
    rows: Annotated[tuple[ReuseRow, ...], Field(min_length=1)]


class RecurringResults(Record):
    """Methods on each phrasing once (`each_once`), and on expressions that recur by Zipf's law (`zipf`)."""

    study: Literal["recurring"] = "recurring"
    expressions: Count
    requests: Count
    settings: dict[str, ReuseSetting]


class RequestResults(Document):
    """A request study on one checkpoint.

    >>> from jepa.studies.requests import RequestResults
    >>> RequestResults.model_fields["kind"].default
    'jepa.requests/3'
    """

    kind: Literal["jepa.requests/3"] = "jepa.requests/3"
    results: Annotated[TypingResults | RecurringResults, Field(discriminator="study")]
    code: Code
    libraries: dict[str, str]
    device: Device
    config: dict[str, JsonValue]
