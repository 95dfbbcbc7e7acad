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
        horizon: states that it is trained to predict one after the other.

    Raises:
        InputError: `hidden` or `horizon` is not positive.

    >>> transition = LatentTransition(width=8)
    >>> states, embeddings = torch.randn(5, 8), torch.randn(5, 8)
    >>> torch.equal(transition(states, embeddings), states)
    True
    """

    def __init__(self, width: int, hidden: float = 3.0, horizon: int = 6) -> None:
        super().__init__()
        if hidden <= 0 or horizon < 1:
            raise InputError(f"hidden must be > 0 and horizon >= 1, got {hidden} and {horizon}")
        inner = max(1, round(hidden * width))
        self.width, self.hidden, self.horizon = width, hidden, horizon
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
        return {"_target_": target, "width": self.width, "hidden": self.hidden, "horizon": self.horizon}

    def flops(self) -> int:
        """Of one state, by the conventions of `jepa.operations.count_flops`."""
        return 2 * sum(layer.weight.numel() for layer in self.mlp if isinstance(layer, nn.Linear))
