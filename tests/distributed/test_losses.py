"""Losses on two gloo processes against the same loss on the batch of both, values and gradients in float64.

The processes hold batches of unequal sizes. Gradients are averaged by DistributedDataParallel, losses here.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa.losses.distance import L1, L2, MSE, Cosine, SmoothL1
from jepa.losses.infonce import InfoNCE, ProjectionHead, info_nce
from jepa.losses.regularisers import SIGReg, VICReg
from jepa.losses.siglip import SigLIP
from jepa.predictors.experts import load_balancing_loss

SIZES = (2, 4)
IDS = torch.tensor([5, 7, 7, 1, 5, 1])  # equal texts within a rank and across ranks
LOCAL = "InfoNCE, local"
DISTANCES = {"Cosine": Cosine, "L1": L1, "L2": L2, "MSE": MSE, "SmoothL1": SmoothL1}
WAIT = datetime.timedelta(seconds=60)


class Case(nn.Module):
    """Two linear encoders and a loss, so that gradients reach parameters by way of latents of all ranks."""

    def __init__(self, loss: nn.Module, use_ids: bool) -> None:
        super().__init__()
        self.encode, self.embed, self.loss = nn.Linear(5, 4), nn.Linear(3, 4), loss
        self.use_ids = use_ids

    def forward(self, rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        contexts, texts = (torch.randn(6, n, generator=generator, dtype=torch.float64)[rows] for n in (5, 3))
        predictions, targets = self.encode(contexts), self.embed(texts)
        if self.loss.unit_norm:
            predictions, targets = nn.functional.normalize(predictions), nn.functional.normalize(targets)
        return self.loss(predictions, targets, IDS[rows] if self.use_ids else None)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    made = {
        "InfoNCE": Case(InfoNCE(0.3), use_ids=True),
        "InfoNCE, no ids": Case(InfoNCE(0.3), use_ids=False),
        "InfoNCE, head": Case(InfoNCE(0.3, head=ProjectionHead(4, 6, 3)), use_ids=True),
        "InfoNCE, fixed": Case(InfoNCE(0.3, learnable=False), use_ids=True),
        "SigLIP": Case(SigLIP(4.0, -2.0), use_ids=True),
        "SigLIP, no ids": Case(SigLIP(4.0, -2.0), use_ids=False),
        "VICReg": Case(VICReg(), use_ids=False),
        "SIGReg": Case(SIGReg(projections=6), use_ids=False),
        "InfoNCE, chunks": Case(InfoNCE(0.3, chunk=3), use_ids=True),
        "InfoNCE, chunks, no ids": Case(InfoNCE(0.3, chunk=1), use_ids=False),
        **{name: Case(distance(), use_ids=False) for name, distance in DISTANCES.items()},
        LOCAL: Case(InfoNCE(0.3, gather=False), use_ids=True),
    }
    return {name: case.double() for name, case in made.items()}


def outcome(case: nn.Module, rows: slice, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)  # SIGReg's directions
    loss = case(rows)
    loss.backward()
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in case.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def rows_of(rank: int, name: str) -> slice:
    sizes = (3, 3) if name in DISTANCES else SIZES  # a plain mean over rows asks for batches of equal size
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64))


def further_negatives(rank: int) -> dict[str, Tensor]:
    """InfoNCE with two further negatives on each rank, and its gradient by that rank's predictions."""
    rows = rows_of(rank, "InfoNCE")
    predictions = unit(6, 0)[rows].requires_grad_()
    extra, extra_ids = unit(2, 2 + rank), torch.tensor([9, 7])
    loss = info_nce(predictions, unit(6, 1)[rows], 0.3, IDS[rows], extra, extra_ids, gather=True)
    loss.backward()
    return {"loss": loss.detach(), "predictions": predictions.grad}


def balance(rows: slice, gather: bool) -> dict[str, Tensor]:
    """The load-balancing loss of 5 experts, 2 for a token, and its gradient by the router."""
    router = unit(5, 4).requires_grad_()
    probabilities = (3 * unit(6, 0)[rows] @ router.T).softmax(-1)
    loss = load_balancing_loss(probabilities, probabilities.topk(2).indices, gather=gather)
    loss.backward()
    return {"loss": loss.detach(), "router": router.grad}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    made = cases()  # before there is a process group, as Lightning does
    dist.init_process_group("gloo", f"file://{folder}/meet", WAIT, world_size=2, rank=rank)
    found = {}
    for name, case in made.items():
        wrapped = case if name == LOCAL else DistributedDataParallel(case)
        found[name] = outcome(wrapped, rows_of(rank, name), seed=rank)
    found["further negatives"] = further_negatives(rank)
    found["balance"] = balance(rows_of(rank, "balance"), gather=True)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    mp.start_processes(work, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in cases() if name != LOCAL])
def test_value_and_gradients_equal_the_global_batch(ranks, name):
    expected = outcome(cases()[name], slice(None), seed=0)
    assert expected.keys() == ranks[0][name].keys()
    for key, value in expected.items():
        mean = (ranks[0][name][key] + ranks[1][name][key]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
        assert value.any(), f"{key} is tested by nothing"


def test_further_negatives_count_on_their_rank_alone(ranks):
    predictions, targets, total = unit(6, 0).requires_grad_(), unit(6, 1), 0.0
    for i in range(6):
        rank = 0 if i < SIZES[0] else 1
        others = [j for j in range(6) if IDS[j] != IDS[i]]
        right = (predictions[i] @ targets[i] / 0.3).exp()
        forth = right + sum((predictions[i] @ targets[j] / 0.3).exp() for j in others)
        further = [z for z, n in zip(unit(2, 2 + rank), (9, 7), strict=True) if n != IDS[i]]
        forth = forth + sum((predictions[i] @ z / 0.3).exp() for z in further)
        back = right + sum((predictions[j] @ targets[i] / 0.3).exp() for j in others)
        total = total - (right / forth).log() / 12 - (right / back).log() / 12
    total.backward()
    found = [rank["further negatives"] for rank in ranks]
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, total.detach())
    # The gradient of the mean over ranks: each rank holds that of the sum.
    gradients = torch.cat([rank["predictions"] for rank in found]) / 2
    torch.testing.assert_close(gradients, predictions.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["VICReg", "SIGReg"])
def test_a_statistic_of_the_batch_is_the_same_on_all_ranks(ranks, name):
    assert ranks[0][name]["loss"] == ranks[1][name]["loss"]


def test_experts_are_balanced_over_all_ranks(ranks):
    for name, expected in balance(slice(None), gather=False).items():
        mean = (ranks[0]["balance"][name] + ranks[1]["balance"][name]) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


def test_without_gather_each_rank_is_alone(ranks):
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found[LOCAL], outcome(cases()[LOCAL], rows_of(rank, LOCAL), seed=0))
