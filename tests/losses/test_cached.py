"""A batch encoded in chunks against the same batch encoded at once: value, gradients, and what is kept in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from jepa.losses.cached import cached_loss
from jepa.losses.infonce import InfoNCE

WIDTH, HIDDEN = 6, 40


class Towers(nn.Module):
    """Two encoders and a learned temperature."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encode, self.embed = (
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(dropout), nn.Linear(HIDDEN, 4))
            for _ in range(2)
        )
        self.loss = InfoNCE(0.3, chunk=3)

    def forward(self, chunk: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        contexts, texts = chunk
        return F.normalize(self.encode(contexts)), F.normalize(self.embed(texts))


def towers(**options: float) -> Towers:
    torch.manual_seed(0)
    return Towers(**options).double()


def split(rows: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    both = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(zip(*(side.split(size) for side in both), strict=True))


def assert_equal(value, expected, ours: nn.Module, theirs: nn.Module) -> None:
    """In the losses and in the gradients of all parameters."""
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    expected.backward()
    value.backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert other.grad.any(), name
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 10, 11])
def test_value_and_gradients_are_those_of_the_whole_batch(size):
    whole, chunked, ids = towers(), towers(), torch.arange(11) // 2
    expected = whole.loss(*whole(split(11, 11)[0]), ids)
    value = cached_loss(chunked, split(11, size), lambda *latents: chunked.loss(*latents, ids))
    assert_equal(value, expected, chunked, whole)


def test_dropout_is_the_same_in_both_passes():
    """The gradient is that of the masks of the forward pass, drawn here chunk by chunk."""
    plain, chunked = towers(dropout=0.5), towers(dropout=0.5)
    torch.manual_seed(7)
    expected = plain.loss(*(torch.cat(each) for each in zip(*map(plain, split(8, 2)), strict=True)))
    torch.manual_seed(7)
    assert_equal(cached_loss(chunked, split(8, 2), chunked.loss), expected, chunked, plain)


def test_no_activation_outlives_its_chunk():
    """What autograd keeps is an input, a parameter or an embedding; of one chunk, where backward begins, all."""
    model, kept, chunks = towers(), [], split(32, 4)
    with saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
        cached_loss(model, chunks, model.loss)
        of_all = kept.count((4, HIDDEN))
        kept.clear()
        model.loss(*model(chunks[0]))
        assert of_all == kept.count((4, HIDDEN)) > 0
