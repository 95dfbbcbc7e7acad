"""Next-latent prediction (arXiv 2511.05963): a language model's next state from this one and the token between.

R rows of L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError
from jepa.losses.gather import GlobalBatch
from jepa.losses.inputs import at_least_float32


def next_latent_loss(
    transition: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    labels: Tensor,
    embed: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    horizon: int,
    ignore: int = -100,
) -> tuple[Tensor, Tensor]:
    """Smooth L1 to the next states, and KL from the head on them to the head on the predicted ones (nats).

    From each state whose next token is a label the transition goes on for up to `horizon` tokens, on its own
    predictions; both are means over all states that it arrives at. No gradient goes through what is predicted. On
    several ranks the mean over ranks is that of the global batch.

    Args:
        transition: states h_t and embeddings of x_{t+1}, each (N, D) -> ĥ_{t+1} (N, D).
        states: (R, L, D) last hidden states.
        labels: (R, L) x_{t+1} at position t, `ignore` where the next position does not go on; never at the last.
        embed: (N,) tokens -> embeddings (N, D).
        head: states (N, D) -> logits (N, V).
        horizon: d, steps.

    Raises:
        InputError: `horizon` < 1, or no label.

    >>> labels = torch.tensor([[3, 4, -100]])
    >>> embed, head = torch.nn.Embedding(8, 2), torch.nn.Linear(2, 8)
    >>> l1, kl = next_latent_loss(lambda states, tokens: states, torch.ones(1, 3, 2), labels, embed, head, horizon=2)
    >>> l1.item(), kl.item()  # what never changes is its own next state
    (0.0, 0.0)
    """
    if horizon < 1:
        raise InputError(f"horizon must be >= 1, got {horizon}")
    flat, tokens = at_least_float32("states", states).flatten(0, 1), labels.flatten()
    start = (tokens != ignore).nonzero()[:, 0]
    if not len(start):
        raise InputError("labels must hold at least 1 token to predict the state of, got none")
    place, predicted = start, flat[start]
    distances, divergences = [], []
    for _ in range(horizon):
        predicted = transition(predicted, embed(tokens[place]))
        place = place + 1
        target = flat[place].detach()
        distances.append(F.smooth_l1_loss(predicted, target, reduction="none").mean(-1))
        with torch.no_grad():
            true = head(target).log_softmax(-1)
        own = head(predicted).log_softmax(-1)
        divergences.append(F.kl_div(own, true, reduction="none", log_target=True).sum(-1))
        on = tokens[place] != ignore
        if not bool(on.any()):
            break
        place, predicted = place[on], predicted[on]
    distance, divergence = torch.cat(distances), torch.cat(divergences)
    weight = GlobalBatch.around(distance, gather=True).weight
    return distance.mean() * weight, divergence.mean() * weight
