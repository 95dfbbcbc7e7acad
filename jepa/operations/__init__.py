"""What a model does while it runs, counted; and what its sizes alone say."""

from jepa.operations.closed_form import (
    TransformerFlops,
    block_flops,
    frame_vit_flops,
    one_pass_flops,
    prefix_decoder_flops,
    query_predictor_flops,
    similarity_flops,
    text_transformer_flops,
    token_vlm_flops,
    transformer_cache_bytes,
    transformer_flops,
)
from jepa.operations.dimensions import FAMILIES, Dimensions, from_hf_config
from jepa.operations.flops import FlopCount, count_flops
from jepa.operations.ledger import PARTS, TRAINING_PARTS, CacheCount, OperationLedger, PartCount, weight_bytes
from jepa.operations.training import TrainingMeter

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
    "block_flops",
    "count_flops",
    "frame_vit_flops",
    "from_hf_config",
    "one_pass_flops",
    "prefix_decoder_flops",
    "query_predictor_flops",
    "similarity_flops",
    "text_transformer_flops",
    "token_vlm_flops",
    "transformer_cache_bytes",
    "transformer_flops",
    "weight_bytes",
]
