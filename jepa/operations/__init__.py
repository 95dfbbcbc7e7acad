"""What a model does while it runs, counted."""

from jepa.operations.closed_form import FAMILIES, TransformerFlops, transformer_flops
from jepa.operations.flops import FlopCount, count_flops
from jepa.operations.ledger import PARTS, CacheCount, OperationLedger, PartCount

__all__ = [
    "FAMILIES",
    "PARTS",
    "CacheCount",
    "FlopCount",
    "OperationLedger",
    "PartCount",
    "TransformerFlops",
    "count_flops",
    "transformer_flops",
]
