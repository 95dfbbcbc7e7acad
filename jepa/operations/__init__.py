"""What a model does while it runs, counted; and what its sizes alone say."""

from jepa.operations.closed_form import (
    FAMILIES,
    TransformerFlops,
    block_flops,
    frame_vit_flops,
    one_pass_flops,
    prefix_decoder_flops,
    query_predictor_flops,
    similarity_flops,
    text_transformer_flops,
    transformer_cache_bytes,
    transformer_flops,
)
from jepa.operations.flops import FlopCount, count_flops
from jepa.operations.ledger import PARTS, CacheCount, OperationLedger, PartCount
from jepa.operations.parameters import TransformerParameters, transformer_parameters, weight_bytes

__all__ = [
    "FAMILIES",
    "PARTS",
    "CacheCount",
    "FlopCount",
    "OperationLedger",
    "PartCount",
    "TransformerFlops",
    "TransformerParameters",
    "block_flops",
    "count_flops",
    "frame_vit_flops",
    "one_pass_flops",
    "prefix_decoder_flops",
    "query_predictor_flops",
    "similarity_flops",
    "text_transformer_flops",
    "transformer_cache_bytes",
    "transformer_flops",
    "transformer_parameters",
    "weight_bytes",
]
