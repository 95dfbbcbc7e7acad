"""Models: the four roles composed, and what decodes streams with them."""

from jepa.models.bank import BankCache, BankDecoder
from jepa.models.drafts import Continuation, Drafter, Drafts, FirstOf, LatentDrafter, PromptLookup, Verified, packed
from jepa.models.llm_jepa import LLMJEPA, Pass, RequestStates
from jepa.models.roles import Part, Predictor, SlotEncoder, TextTokenizer, XEncoder, YDecoder, YEncoder
from jepa.models.session import AnswerCache, RequestDecoder, RequestSession
from jepa.models.token_vlm import TokenVLM, WindowDecoder
from jepa.models.vl_jepa import VLJEPA, PredictorOnDemand
from jepa.models.windows import WindowedModel, WindowStream

__all__ = [
    "LLMJEPA",
    "VLJEPA",
    "AnswerCache",
    "BankCache",
    "BankDecoder",
    "Continuation",
    "Drafter",
    "Drafts",
    "FirstOf",
    "LatentDrafter",
    "Part",
    "Pass",
    "Predictor",
    "PredictorOnDemand",
    "PromptLookup",
    "RequestDecoder",
    "RequestSession",
    "RequestStates",
    "SlotEncoder",
    "TextTokenizer",
    "TokenVLM",
    "Verified",
    "WindowDecoder",
    "WindowStream",
    "WindowedModel",
    "XEncoder",
    "YDecoder",
    "YEncoder",
    "packed",
]
