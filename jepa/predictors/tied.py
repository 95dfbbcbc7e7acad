"""The predictor of LLM-JEPA: [PRED] tokens through the language model itself (arXiv 2509.14252, section 3.1)."""

from __future__ import annotations

from typing import Literal

from jepa.errors import InputError


class TiedPredictor:
    """`tokens` [PRED] tokens after view 1 ("append") or before it ("prepend"); 0 tokens make it the identity.

    It has no weights but the tokens' embeddings, which are the language model's.

    >>> TiedPredictor(tokens=2).placement
    'append'
    """

    def __init__(self, tokens: int = 1, placement: Literal["append", "prepend"] = "append") -> None:
        if tokens < 0:
            raise InputError(f"tokens must be >= 0, got {tokens}")
        if placement not in ("append", "prepend"):
            raise InputError(f"placement must be append or prepend, got {placement!r}")
        self.tokens, self.placement = tokens, placement
