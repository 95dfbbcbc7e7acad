"""Operations counted while a model runs, and the counts that a transformer's dimensions give.

The ledger needs NumPy alone; what counts FLOPs is imported from its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily
from jepa.operations.ledger import (
    PARTS,
    TRAINING_PARTS,
    CacheCount,
    OperationLedger,
    PartCount,
    timed_together,
    weight_bytes,
)
from jepa.operations.transformer import (
    FAMILIES,
    Dimensions,
    TransformerFlops,
    from_hf_config,
    similarity_flops,
    transformer_cache_bytes,
    transformer_flops,
)

if TYPE_CHECKING:
    from jepa.operations.flops import FlopCount, count_flops
    from jepa.operations.meter import TrainingMeter

__all__ = [
    "FAMILIES",
    "PARTS",
    "TRAINING_PARTS",
    "CacheCount",
    "Dimensions",
    "FlopCount",
    "OperationLedger",
    "PartCount",
    "TrainingMeter",
    "TransformerFlops",
    "count_flops",
    "from_hf_config",
    "similarity_flops",
    "timed_together",
    "transformer_cache_bytes",
    "transformer_flops",
    "weight_bytes",
]

_HOMES = {"FlopCount": "flops", "TrainingMeter": "meter", "count_flops": "flops"}

__getattr__ = lazily(__name__, _HOMES)
