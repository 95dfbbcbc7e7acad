"""Next-latent prediction (arXiv 2511.05963): the next state of a language model from this one and the token between.

D width of the language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa.errors import InputError


class LatentTransition(nn.Module):
    """ĥ_{t+1} = h_t + MLP([norm(h_t), norm(e(x_{t+1}))]), three layers; at first ĥ_{t+1} = h_t.

    States are the language model's last hidden states, after its final norm, as its head reads them.

    Args:
        width: D.
        hidden: width of the two hidden layers as a multiple of D.

    Raises:
        InputError: `hidden` is not positive.

    >>> transition = LatentTransition(width=8)
    >>> states, embeddings = torch.randn(5, 8), torch.randn(5, 8)
    >>> torch.equal(transition(states, embeddings), states)
    True
    """

    def __init__(self, width: int, hidden: float = 2.0) -> None:
        super().__init__()
        if hidden <= 0:
            raise InputError(f"hidden must be > 0, got {hidden}")
        inner = max(1, round(hidden * width))
        self.width, self.hidden = width, hidden
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        last = nn.Linear(inner, width)
        self.mlp = nn.Sequential(nn.Linear(2 * width, inner), nn.GELU(), nn.Linear(inner, inner), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """States h_t and embeddings of the tokens x_{t+1}, each (..., D) -> predicted states ĥ_{t+1} (..., D)."""
        state_norm, token_norm = self.norms
        return states + self.mlp(torch.cat([state_norm(states), token_norm(embeddings)], dim=-1))

    def node(self) -> dict[str, Any]:
        """The `_target_` node that builds it again, with new weights."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"_target_": target, "width": self.width, "hidden": self.hidden}

    def flops(self) -> int:
        """Of one state, by the conventions of `jepa.operations.count_flops`."""
        return 2 * sum(layer.weight.numel() for layer in self.mlp if isinstance(layer, nn.Linear))
