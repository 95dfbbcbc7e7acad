"""What a training step is counted to cost against one count of the whole step, and what is the same with the meter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.encoders.text import TextTransformer
from jepa.losses.cached import cached_loss
from jepa.losses.infonce import InfoNCE
from jepa.operations import TRAINING_PARTS, TrainingMeter, count_flops
from jepa.predictors.experts import Mixture
from jepa.predictors.transformer import QueryPredictor


def parts() -> tuple[TextTransformer, TextTransformer, InfoNCE]:
    torch.manual_seed(0)
    return TextTransformer(40, 8, 16, 2, 2), TextTransformer(40, 8, 16, 1, 2), InfoNCE(0.1)


def batch(rows: int, length: int, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[-1, -1] = not padded
    return torch.randint(40, (rows, length), generator=torch.Generator().manual_seed(rows)), mask


def step(meter: TrainingMeter, run) -> None:
    meter.start(torch.device("cpu"))
    loss = run()
    meter.backward()
    loss.backward()
    meter.update()
    meter.stop(updated=4)


@pytest.mark.parametrize("padded", [False, True])
def test_flops_are_those_of_the_steps_counted_whole(padded):
    one, other, loss = parts()
    meter = TrainingMeter({"predictor": [one], "y_encoder": [other]}, [loss])
    shapes = [(4, 5), (6, 5), (4, 7), (4, 5)]
    expected = 0
    for rows, length in shapes:

        def run(rows=rows, length=length):
            return loss(one(*batch(rows, length, padded)), other(*batch(rows, 3, padded)))

        step(meter, run)
        expected += count_flops(lambda run=run: run().backward()).total
    meter.remove()
    found = meter.record()
    assert found["steps"] == len(shapes)
    assert sum(part["flops"] for part in found["parts"].values()) == expected
    assert tuple(found["parts"]) == TRAINING_PARTS
    read = 2 * 4 * sum(p.numel() for p in one.parameters())  # float32, forward and backward
    assert found["parts"]["predictor"]["weight_bytes"] == len(shapes) * read
    assert found["parts"]["predictor"]["calls"] == sum(rows for rows, _ in shapes)
    assert found["parts"]["optimizer"]["weight_bytes"] == 4 * len(shapes)
    assert found["parts"]["encoder"]["seconds"] == 0 < found["parts"]["predictor"]["seconds"]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_each_batch_of_sparse_experts_counts_its_own_padding(length):
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "mixture": Mixture(6, 2, 24, 1)}
    model = QueryPredictor(40, 12, 8, **sizes)
    meter = TrainingMeter({"predictor": [model]})
    expected = 0
    for lengths in ([length] * 4, [1] * 4, [length, 1, length, 1], [1, 0, length, max(length - 1, 1)], [length, 0]):
        mask = torch.arange(length) < torch.tensor(lengths)[:, None]
        ids, states = torch.randint(40, mask.shape), torch.randn(len(mask), 5, 12, requires_grad=True)

        def run(ids=ids, states=states, mask=mask):
            return model(states, ids, mask).sum()

        step(meter, run)
        expected += count_flops(lambda run=run: run().backward()).total
        assert meter.ledger.total_flops == expected
    meter.remove()


def test_encoding_again_for_the_backward_pass_counts_again():
    one, other, loss = parts()
    meter = TrainingMeter({"predictor": [one], "y_encoder": [other]}, [loss])

    def run():
        return cached_loss(lambda rows: (one(*rows), other(*rows)), [batch(4, 5, False), batch(2, 5, False)], loss)

    step(meter, run)
    meter.remove()
    parameters = [*one.parameters(), *other.parameters()]
    plain = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    run().backward()
    for parameter, gradient in zip(parameters, plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    counts = meter.record()["parts"]
    for name, module in (("predictor", one), ("y_encoder", other)):
        forward = count_flops(lambda module=module: module(*batch(4, 5, False))).total  # all chunks but the last
        both = count_flops(lambda module=module: module(*batch(6, 5, False)).sum().backward()).total
        assert counts[name]["flops"] == forward + both
        assert counts[name]["forward_passes"] == 3


def test_what_is_frozen_has_no_backward_pass_and_counting_draws_no_numbers():
    torch.manual_seed(0)
    frozen, head = nn.Linear(4, 6).requires_grad_(False), nn.Linear(6, 2)
    meter = TrainingMeter({"encoder": [frozen], "decoder": [nn.Dropout(), head]})
    state = torch.get_rng_state()
    step(meter, lambda: head(frozen(torch.ones(3, 4))).sum())
    assert torch.equal(torch.get_rng_state(), state)
    counts = meter.record()["parts"]
    assert counts["encoder"]["flops"] == 2 * 3 * 4 * 6
    assert counts["decoder"]["flops"] == 2 * (2 * 3 * 6 * 2)  # no gradient for the frozen states
    assert counts["encoder"]["weight_bytes"] == 4 * (4 * 6 + 6)


def test_between_batches_and_after_removal_nothing_counts():
    one, _, loss = parts()
    meter = TrainingMeter({"predictor": [one]}, [loss])
    one(*batch(2, 3, False))
    assert meter.ledger.total_flops == 0
    meter.remove()
    step(meter, lambda: one(*batch(2, 3, False)).sum())
    assert meter.ledger.predictor.calls == 0


def test_counting_leaves_hooks_and_buffers_alone():
    inner = nn.BatchNorm1d(8)
    part, seen = nn.Sequential(nn.Linear(5, 5), inner, nn.Linear(5, 1)), []
    inner.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    meter = TrainingMeter({"encoder": [part]})
    rows = torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(0))
    step(meter, lambda: part(rows).sum())
    meter.remove()
    assert [tuple(inputs.shape) for inputs in seen] == [(6, 8, 5)]
    assert int(inner.num_batches_tracked) == 1
    torch.testing.assert_close(inner.running_mean, 0.1 * seen[0].mean((0, 2)))
