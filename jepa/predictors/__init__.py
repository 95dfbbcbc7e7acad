"""Predictors: states of a context and a query to the embedding of the answer."""

from jepa.predictors.experts import ExpertBlock, Experts, Mixture, Routing
from jepa.predictors.language import LanguagePredictor
from jepa.predictors.tied import TiedPredictor
from jepa.predictors.transformer import QueryPredictor
from jepa.predictors.transition import LatentTransition

__all__ = [
    "ExpertBlock",
    "Experts",
    "LanguagePredictor",
    "LatentTransition",
    "Mixture",
    "QueryPredictor",
    "Routing",
    "TiedPredictor",
]
