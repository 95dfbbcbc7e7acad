"""The predictor of LLM-JEPA: [PRED] tokens through the language model itself (arXiv 2509.14252, section 3.1)."""

from __future__ import annotations

from typing import Literal

from jepa.errors import InputError


class TiedPredictor:
    """`tokens` [PRED] tokens after view 1 ("append") or before it ("prepend"); 0 tokens make it the identity.

    "turn", as published: inside the user's turn, before its end, in the order k to 1; both embeddings are then states
    before the end of a turn. It has no weights but the tokens' embeddings, which are the language model's.

    >>> TiedPredictor(tokens=2).placement
    'append'
    """

    def __init__(self, tokens: int = 1, placement: Literal["append", "prepend", "turn"] = "append") -> None:
        if tokens < 0:
            raise InputError(f"tokens must be >= 0, got {tokens}")
        if placement not in ("append", "prepend", "turn"):
            raise InputError(f"placement must be append, prepend or turn, got {placement!r}")
        self.tokens, self.placement = tokens, placement
