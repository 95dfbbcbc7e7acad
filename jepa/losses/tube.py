"""Semantic tube prediction: hidden states of a text should go on in the direction they came from.

Huang, LeCun and Balestriero 2026, arXiv 2602.22617. N: triples of states; E: dimensions of a state.
"""

from __future__ import annotations

from torch import Tensor, nn

from jepa.errors import InputError
from jepa.losses.distance import cosine_distance
from jepa.losses.inputs import at_least_float32


def semantic_tube(states: Tensor) -> Tensor:
    """Mean of 1 − cos(h_t − h_r, h_r − h_s) over triples of hidden states at positions s < r < t of one text.

    Equal states have no direction between them: such a triple counts as cos = 0, without gradient.

    Args:
        states: (N, 3, E): h_s, h_r, h_t, of any norm. Half precision is computed in float32.

    Returns:
        Scalar in [0, 2]; 0 when each triple lies on a line, in order.

    Raises:
        InputError: `states` are not floating point (N, 3, E) with N, E >= 1.
    """
    if states.ndim != 3 or states.shape[1] != 3 or 0 in states.shape:
        raise InputError(f"states must be (N, 3, E) with N, E >= 1, got {tuple(states.shape)}")
    states = at_least_float32("states", states)
    before, middle, after = states.unbind(dim=1)
    return cosine_distance(after - middle, middle - before)


class SemanticTube(nn.Module):
    """`semantic_tube`. States are not to be normalised: their differences count.

    >>> import torch
    >>> line = torch.tensor([0.0, 1.0, 2.0])[None, :, None].expand(1, 3, 4)
    >>> SemanticTube()(line)
    tensor(0.)
    """

    unit_norm = False

    def forward(self, states: Tensor) -> Tensor:
        return semantic_tube(states)
