"""Semantic tube prediction: hidden states of a text should go on in the direction they came from.

Huang, LeCun and Balestriero 2026, arXiv 2602.22617. N: triples of states; E: dimensions of a state.
"""

from __future__ import annotations

from torch import Tensor

from jepa.errors import InputError
from jepa.losses.distance import cosine_distance
from jepa.losses.inputs import at_least_float32


def semantic_tube(states: Tensor) -> Tensor:
    """Mean of 1 − cos(h_t − h_r, h_r − h_s) over triples of hidden states at positions s < r < t of one text.

    `states` (N, 3, E) floating point are h_s, h_r, h_t, not normalised: their differences count. Returns a scalar in
    [0, 2], 0 when each triple lies on a line, in order. Equal states have no direction between them: such a triple
    counts as cos = 0, without gradient. Half precision is computed in float32. Raises `InputError` for other states.

    >>> import torch
    >>> semantic_tube(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]]))  # a right angle
    tensor(1.)
    """
    if states.ndim != 3 or states.shape[1] != 3 or 0 in states.shape:
        raise InputError(f"states must be (N, 3, E) with N, E >= 1, got {tuple(states.shape)}")
    before, middle, after = at_least_float32("states", states).unbind(dim=1)
    return cosine_distance(after - middle, middle - before)
