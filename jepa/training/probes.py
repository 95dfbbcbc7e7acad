"""Online probes: what frozen states and latents say about the labels that validation has, while training goes on.

N clips, D dimensions.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import check_int
from jepa.metrics.latents import rankme
from jepa.training.modules import JEPAModule, text_ids


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, count: int) -> Tensor:
    """The label (M,) that most of the `count` nearest of N rows by cosine have, for M rows; of equals the smallest.

    >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> nearest_neighbours(rows, torch.tensor([7, 7, 9]), torch.tensor([[0.9, 0.0]]), 2)
    tensor([7])
    """
    near = (F.normalize(test, dim=-1) @ F.normalize(train, dim=-1).T).topk(min(count, len(train))).indices
    return labels[near].mode(1).values


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, decay: float = 1e-2) -> Tensor:
    """The label (M,) of a ridge regression (one-hot targets) of N rows, for M rows.

    >>> rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> linear_probe(rows, torch.tensor([7, 7, 9, 9]), torch.tensor([[0.0, 3.0]]))
    tensor([9])
    """
    kinds, numbers = labels.unique(return_inverse=True)
    mean, scale = train.mean(0), train.std(0).clamp_min(1e-6)
    rows, asked = ((each - mean) / scale for each in (train, test))
    centred = F.one_hot(numbers, len(kinds)).to(rows.dtype)
    system = rows.T @ rows + decay * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    weights = torch.linalg.solve(system, rows.T @ (centred - centred.mean(0)))
    return kinds[(asked @ weights + centred.mean(0)).argmax(1)]


class Probes(L.Callback):
    """At each validation of a VL-JEPA, k-nearest neighbours and a linear probe name the texts of clips; and RankMe.

    Even clips are learnt from, odd ones asked about, by the X-Encoder's mean states (N, D) and by predicted latents.
    Texts that are a clip's label, as in `data.fractions={class: 1.0}`, make it a classification. Logged as
    `probe/<states or latents>/<knn, linear or rankme>`.
    """

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = check_int("neighbours", neighbours, 1)
        self._rows: dict[str, list[Tensor]] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._rows = {"states": [], "latents": [], "labels": []}

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        if isinstance(module, JEPAModule):
            states = module.model.encode(batch.frames)
            self._rows["states"].append(states.mean(1).float())
            self._rows["latents"].append(module.model.predict(states, batch.queries).float())
            self._rows["labels"].append(text_ids(batch.texts).to(states.device))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._rows["labels"]:
            return
        labels = torch.cat(self._rows["labels"])
        for name in ("states", "latents"):
            rows = torch.cat(self._rows[name])
            found = {"rankme": rankme(rows)}
            if len(rows) > 1:
                asked = (rows[::2], labels[::2], rows[1::2])
                found["knn"] = (nearest_neighbours(*asked, self.neighbours) == labels[1::2]).float().mean()
                found["linear"] = (linear_probe(*asked) == labels[1::2]).float().mean()
            module.log_dict({f"probe/{name}/{key}": value for key, value in found.items()}, sync_dist=True)
