"""Next-latent prediction against a loop over positions, and where its gradients go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import refuses
from torch import nn

from jepa.losses.transition import next_latent_loss
from jepa.predictors.transition import LatentTransition

LABELS = torch.tensor([[-100, 3, 4, 5, -100, -100], [7, -100, -100, 1, 2, -100]])


@pytest.fixture
def parts():
    torch.manual_seed(0)
    transition = LatentTransition(6)
    nn.init.normal_(transition.mlp[-1].weight)
    return transition, nn.Embedding(9, 6), nn.Linear(6, 9), torch.randn(2, 6, 6, requires_grad=True)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_is_the_mean_over_all_states_arrived_at(parts, horizon):
    transition, embed, head, states = parts
    distances, divergences = [], []
    for row, labels in zip(states, LABELS.tolist(), strict=True):
        for start in range(6):
            predicted = row[start]
            for place in range(start, min(start + horizon, 6)):
                if labels[place] == -100:
                    break
                predicted = transition(predicted, embed.weight[labels[place]])
                distances.append(F.smooth_l1_loss(predicted, row[place + 1]))
                p, q = head(row[place + 1]).softmax(-1), head(predicted).softmax(-1)
                divergences.append((p * (p / q).log()).sum())
    found = next_latent_loss(transition, states, LABELS, embed, head, horizon)
    torch.testing.assert_close(found[0], torch.stack(distances).mean())
    torch.testing.assert_close(found[1], torch.stack(divergences).mean())


def test_no_gradient_goes_through_what_is_predicted(parts):
    transition, embed, head, states = parts
    sum(next_latent_loss(transition, states, LABELS, embed, head, 1)).backward()
    starts = LABELS != -100
    assert bool((states.grad[starts] != 0).any(-1).all())
    assert not states.grad[~starts].any()
    assert all(parameter.grad.abs().sum() > 0 for parameter in transition.mlp.parameters())


def test_refuses_what_it_cannot_do(parts):
    transition, embed, head, states = parts
    refuses("horizon must be >= 1, got 0", next_latent_loss, transition, states, LABELS, embed, head, 0)
    refuses("at least 1 token", next_latent_loss, transition, states, torch.full_like(LABELS, -100), embed, head, 1)
