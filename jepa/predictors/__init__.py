"""Predictors: states of a context and a query to the embedding of the answer.

Each name is imported from its module when it is first used: most need a library that the others do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily

if TYPE_CHECKING:
    from jepa.predictors.experts import (
        ExpertBlock,
        Experts,
        Mixture,
        Routing,
        active_parameters,
        load_balancing_loss,
        recorded_routing,
    )
    from jepa.predictors.language import LanguagePredictor
    from jepa.predictors.tied import TiedPredictor
    from jepa.predictors.transformer import QueryPredictor

__all__ = [
    "ExpertBlock",
    "Experts",
    "LanguagePredictor",
    "Mixture",
    "QueryPredictor",
    "Routing",
    "TiedPredictor",
    "active_parameters",
    "load_balancing_loss",
    "recorded_routing",
]

_HOMES = {
    "ExpertBlock": "experts",
    "Experts": "experts",
    "LanguagePredictor": "language",
    "Mixture": "experts",
    "QueryPredictor": "transformer",
    "Routing": "experts",
    "TiedPredictor": "tied",
    "active_parameters": "experts",
    "load_balancing_loss": "experts",
    "recorded_routing": "experts",
}

__getattr__ = lazily(__name__, _HOMES)
