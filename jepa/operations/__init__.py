"""Operations counted while a model runs, and the counts that a transformer's dimensions give."""

from jepa.operations.flops import FlopCount, count_flops
from jepa.operations.ledger import (
    PARTS,
    TRAINING_PARTS,
    CacheCount,
    OperationLedger,
    PartCount,
    timed_together,
    weight_bytes,
)
from jepa.operations.meter import TrainingMeter
from jepa.operations.transformer import (
    FAMILIES,
    Dimensions,
    TransformerFlops,
    from_hf_config,
    similarity_flops,
    transformer_cache_bytes,
    transformer_flops,
)

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
