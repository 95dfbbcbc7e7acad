"""Models: the four roles composed, and what decodes streams with them."""

from jepa.models.bank import BankCache, BankDecoder, calibrate_margin, caption_bank, fill_bank
from jepa.models.llm_jepa import LLMJEPA, Pass, RequestStates
from jepa.models.on_demand import PredictorOnDemand, mean_states
from jepa.models.roles import Part, Predictor, SlotEncoder, TextTokenizer, XEncoder, YDecoder, YEncoder
from jepa.models.session import AnswerCache, Answerer, RequestDecoder, RequestSession, follow, read_latent, read_state
from jepa.models.token_vlm import TokenVLM, WindowDecoder, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.models.windows import WindowedModel

__all__ = [
    "LLMJEPA",
    "VLJEPA",
    "AnswerCache",
    "Answerer",
    "BankCache",
    "BankDecoder",
    "Part",
    "Pass",
    "Predictor",
    "PredictorOnDemand",
    "RequestDecoder",
    "RequestSession",
    "RequestStates",
    "SlotEncoder",
    "TextTokenizer",
    "TokenVLM",
    "WindowDecoder",
    "WindowedModel",
    "XEncoder",
    "YDecoder",
    "YEncoder",
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
