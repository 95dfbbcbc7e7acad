"""Models: the four roles composed, and what decodes streams with them."""

from jepa.models.bank import BankCache, BankDecoder, calibrate_margin, caption_bank, fill_bank
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.on_demand import PredictorOnDemand, mean_states
from jepa.models.session import AnswerCache, RequestDecoder, RequestSession, follow, read_latent, read_state
from jepa.models.token_vlm import TokenVLM, WindowDecoder, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA, set_fused_attention

__all__ = [
    "LLMJEPA",
    "VLJEPA",
    "AnswerCache",
    "BankCache",
    "BankDecoder",
    "PredictorOnDemand",
    "RequestDecoder",
    "RequestSession",
    "TokenVLM",
    "WindowDecoder",
    "calibrate_margin",
    "candidate_scores",
    "caption_bank",
    "fill_bank",
    "follow",
    "mean_states",
    "ranks_of_own",
    "read_latent",
    "read_state",
    "set_fused_attention",
]
