"""Sparse experts against plain loops over tokens, closed counts, and their limits: one expert, all experts."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import new_model, refusals, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import jepa
from jepa import checkpoint
from jepa.build import build
from jepa.cli import compose
from jepa.config import validate
from jepa.data.clips import ClipBatches
from jepa.data.world import World
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import count_flops
from jepa.predictors.experts import (
    ExpertBlock,
    Experts,
    Mixture,
    active_parameters,
    load_balancing_loss,
    recorded_routing,
)
from jepa.predictors.transformer import QueryPredictor
from jepa.training.configs import TrainConfig
from jepa.training.modules import JEPAModule

MIXTURE = {"_target_": "jepa.predictors.experts.Mixture", "experts": 6, "top_k": 2, "hidden": 16}
MIXTURE |= {"shared": 1, "balance_weight": 0.5}


def layer(experts: int = 6, top_k: int = 2, shared: int = 1, width: int = 16, hidden: int = 24) -> Experts:
    torch.manual_seed(0)
    return Experts(width, Mixture(experts, top_k, hidden, shared))


def rows(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_by_one(experts: Experts, tokens: Tensor) -> Tensor:
    """Each token through its experts, in plain products."""
    outputs = []
    for token in tokens:
        probabilities = torch.softmax(experts.router.weight @ token, 0)
        best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i].item())[: experts.mixture.top_k]
        total = sum(probabilities[i] for i in best) if len(best) > 1 else 1.0
        output = torch.zeros_like(token)
        for i in best:
            hidden = nn.functional.gelu(token @ experts.up[i])
            output = output + probabilities[i] / total * (hidden @ experts.down[i])
        if experts.shared is not None:
            hidden = nn.functional.gelu(experts.shared.fc1.weight @ token)
            output = output + experts.shared.fc2.weight @ hidden
        outputs.append(output)
    return torch.stack(outputs)


def gradients(experts: Experts, tokens: Tensor, outputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights).sum(), [tokens, *experts.parameters()]))


@pytest.mark.parametrize(("experts", "top_k", "shared"), [(6, 2, 1), (6, 1, 0), (3, 3, 2), (1, 1, 0), (40, 3, 1)])
def test_values_and_gradients_are_those_of_one_token_at_a_time(experts, top_k, shared):
    made = layer(experts, top_k, shared).double()
    tokens = rows(11).requires_grad_()
    expected = one_by_one(made, tokens)
    outputs, routing = made(tokens)
    assert routing.probabilities.shape == (11, experts)
    assert routing.chosen.shape == (11, top_k)
    torch.testing.assert_close(outputs, expected)
    for found, wanted in zip(gradients(made, tokens, outputs), gradients(made, tokens, expected), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
@settings(max_examples=20)
@given(tokens=st.integers(1, 40), experts=st.integers(1, 12), top_k=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_grouped_product_is_the_loop(dtype, tolerance, tokens, experts, top_k, seed):
    made = layer(experts, min(top_k, experts)).to(dtype)
    inputs = rows(tokens, seed=seed).to(dtype).requires_grad_()
    found = []
    for grouped in (True, False):
        made.grouped = grouped
        counted = count_flops(lambda: made(inputs)[0])
        assert ("aten._grouped_mm" in counted.by_operator) == grouped
        found.append((counted.total, [counted.result, *gradients(made, inputs, counted.result)]))
    (flops, with_grouped), (flops_of_loop, with_loop) = found
    assert flops == flops_of_loop
    for one, other in zip(with_grouped, with_loop, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(other.abs().max().item(), 1e-3))


@pytest.mark.parametrize(("width", "hidden"), [(16, 22), (18, 16)])
def test_widths_that_the_grouped_product_refuses_take_the_loop(width, hidden):
    made = layer(width=width, hidden=hidden)
    tokens = rows(7, width).float()
    counted = count_flops(lambda: made(tokens)[0])
    assert "aten._grouped_mm" not in counted.by_operator
    torch.testing.assert_close(counted.result, one_by_one(made, tokens))


def test_the_products_follow_autocast_and_the_router_does_not():
    made, tokens = layer(), rows(9).float()
    expected, exact = made(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, routing = made(tokens)
        assert load_balancing_loss(routing.probabilities, routing.chosen).dtype == torch.float32
    assert outputs.dtype == torch.bfloat16
    assert routing.probabilities.equal(exact.probabilities)
    assert not outputs.float().equal(expected)
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_output_and_from_the_balance(grouped, balance, top_k):
    made = layer(top_k=top_k)
    made.grouped = grouped
    outputs, routing = made(rows(20).float())
    loss = load_balancing_loss(routing.probabilities, routing.chosen) if balance else outputs.square().sum()
    loss.backward()
    assert made.router.weight.grad.abs().sum() > 0
    assert (made.up.grad is None) == balance


def test_balance_is_the_switch_transformers_loss():
    """Equations 4 to 6, term by term: f counts the tokens whose likeliest expert is i."""
    probabilities = torch.rand(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    chosen = probabilities.argmax(-1, keepdim=True)
    fractions = [sum(int(row.argmax()) == i for row in probabilities) / 50 for i in range(5)]
    expected = 5 * sum(f * probabilities[:, i].mean().item() for i, f in enumerate(fractions))
    assert load_balancing_loss(probabilities, chosen).item() == pytest.approx(expected)


@given(experts=st.integers(1, 8), rounds=st.integers(1, 4), top_k=st.integers(1, 8))
def test_an_even_load_gives_1_and_one_expert_for_all_the_most(experts, rounds, top_k):
    top_k = min(top_k, experts)
    tokens = torch.arange(experts * rounds)
    even = (tokens[:, None] + torch.arange(top_k)) % experts
    probabilities = torch.full((len(tokens), experts), 1 / experts, dtype=torch.float64)
    assert load_balancing_loss(probabilities, even).item() == pytest.approx(1)
    alone = torch.zeros(len(tokens), 1, dtype=torch.long)
    assert load_balancing_loss(torch.eye(experts)[alone[:, 0]], alone).item() == pytest.approx(experts)


def test_one_expert_is_the_dense_block():
    torch.manual_seed(0)
    sparse, dense = ExpertBlock(16, 2, Mixture(1, 1, 64, shared=0)), Block(16, 2, qkv_bias=True)
    weights = {name: tensor for name, tensor in sparse.state_dict().items() if not name.startswith("mlp")}
    weights |= {"mlp.fc1.weight": sparse.mlp.up[0].T, "mlp.fc2.weight": sparse.mlp.down[0].T}
    weights |= {"mlp.fc1.bias": torch.zeros(64), "mlp.fc2.bias": torch.zeros(16)}
    dense.load_state_dict(weights)
    states = rows(6).float().view(2, 3, 16)
    torch.testing.assert_close(sparse(states), dense(states))


def predictor(**changes) -> QueryPredictor:
    torch.manual_seed(0)
    mixture = build(MIXTURE | changes)
    return QueryPredictor(50, state_dim=12, embedding_dim=8, width=16, depth=2, heads=2, mixture=mixture)


def test_padding_is_neither_routed_nor_counted():
    made = predictor()
    states, ids = torch.randn(3, 4, 12), torch.randint(50, (3, 5))
    lengths = [5, 2, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    with recorded_routing(made) as padded:
        together = made(states, ids, mask)
    with recorded_routing(made) as alone:
        for i, length in enumerate(lengths):
            single = made(states[i : i + 1], ids[i : i + 1, :length], mask[i : i + 1, :length])
            torch.testing.assert_close(single[0], together[i])
    assert [len(routing.chosen) for routing in padded] == [3 * 4 + sum(lengths)] * 2
    for depth in range(2):
        assert torch.cat([routing.chosen for routing in alone[depth::2]]).equal(padded[depth].chosen)
    made(states, ids, mask)
    assert len(padded) == 2  # nothing is recorded afterwards


@pytest.mark.parametrize("grouped", [True, False])
def test_flops_are_those_of_the_active_experts(grouped):
    """L tokens, both passes: three products for each product of a trained layer, none for padding."""
    made = predictor(experts=9, top_k=3, shared=2, hidden=24)
    for block in made.blocks:
        block.mlp.grouped = grouped
    states, ids = torch.randn(2, 4, 12), torch.randint(50, (2, 5))
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    total, width, length, real = 2 * 9, 16, 9, 2 * 4 + 5 + 2
    attention = 2 * 4 * width * width * total + 2 * 2 * 2 * width * length * length
    feed_forward = 2 * real * (9 * width + (3 + 2) * 2 * width * 24)
    outside = 2 * (2 * 4) * 12 * width + 2 * 2 * width * 8
    assert count_flops(lambda: made(states, ids, mask)).total == 2 * (attention + feed_forward) + outside
    dense = count_flops(lambda: made.blocks[0].mlp(torch.randn(7, width, requires_grad=True))[0].sum().backward())
    assert dense.total == 3 * 2 * 7 * (3 + 2) * 2 * width * 24 + 2 * 7 * 9 * width + 2 * 2 * 7 * 9 * width


def test_active_parameters_are_those_that_a_token_uses():
    made = predictor()
    used = [p[:2] if name.endswith(("mlp.up", "mlp.down")) else p for name, p in made.named_parameters()]
    assert active_parameters(made) == sum(parameter.numel() for parameter in used)
    assert active_parameters(nn.Linear(3, 4)) == 16


@pytest.fixture(scope="module")
def config() -> dict:
    made = tiny_config()
    made["model"]["predictor"]["mixture"] = MIXTURE
    return made


@pytest.fixture(scope="module")
def model(config, tokenizer) -> VLJEPA:
    return new_model(config, tokenizer)


def test_a_checkpoint_gives_the_same_predictions_and_tells_the_active_parameters(config, model, tiny_model, tmp_path):
    checkpoint.save(model, config, tmp_path)
    loaded = jepa.load(tmp_path)
    states, queries = torch.randn(2, 32, 32), ["what happens?", "how many objects are there?"]
    assert loaded.predict(states, queries).equal(model.predict(states, queries))
    assert loaded.predictor.blocks[0].mlp.mixture == build(MIXTURE)
    predictor = loaded.parameters_by_role()[1]
    assert predictor["total"] - predictor["active"] == 4 * 2 * 32 * 16  # 4 of 6 experts, two matrices each
    assert all(role["active"] == role["total"] for role in tiny_model.parameters_by_role())


def test_training_adds_the_balance_to_the_loss_and_logs_it(model, monkeypatch):
    stage = validate(compose("train", ["experiment=scratch"]), TrainConfig).jepa
    module = JEPAModule(copy.deepcopy(model), stage)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "log_dict", logged.update)
    batch = ClipBatches(World(), 0, 8, 1)[0]
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx((logged["loss"] + 0.5 * logged["balance"]).item())
    assert logged["busiest_expert"] >= 1 >= logged["idlest_expert"] >= 0
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        last = module.training_step(batch, 0)
        last.backward()
        optimizer.step()
    assert last < loss - 0.5
    used = [block.mlp.up.grad.abs().sum((1, 2)) > 0 for block in module.model.predictor.blocks]
    assert all(experts.all() for experts in used)


test_bad_sizes_are_named = refusals(
    ({"experts": 0}, "experts must be a whole number >= 1, got 0"),
    ({"top_k": 7}, "top_k must be <= experts 6, got 7"),
    ({"top_k": 0}, "top_k must be a whole number >= 1, got 0"),
    ({"hidden": 0}, "hidden must be a whole number >= 1, got 0"),
    ({"shared": -1}, "shared must be a whole number >= 0, got -1"),
    ({"balance_weight": -0.1}, "balance_weight must be finite and >= 0, got -0.1"),
    of=lambda change: build(MIXTURE | change),
)
