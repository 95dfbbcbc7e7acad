"""The measures of `jepa.metrics.latents` over batches; apart from them, since torchmetrics takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from jepa.metrics.checks import integers
from jepa.metrics.latents import paired_cosine, rankme, unpaired_cosine
from jepa.metrics.retrieval import retrieval_ranks


class LatentGeometry(Metric):
    """Retrieval, rank and cosines over predictions and targets that arrive in batches.

    Repeated texts are one candidate in retrieval, and not unpaired with each other. `ks` are the k of ``retrieval@k``.

    >>> geometry = LatentGeometry()
    >>> geometry.update(torch.eye(4), torch.eye(4), ids=torch.arange(4))
    >>> {name: round(value.item(), 2) for name, value in geometry.compute().items()}
    {'retrieval@1': 1.0, 'rankme': 4.0, 'paired_cosine': 1.0, 'unpaired_cosine': 0.0}
    """

    is_differentiable = False
    full_state_update = False

    predictions: list[Tensor]
    targets: list[Tensor]
    ids: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        for name in ("predictions", "targets", "ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, ids: Tensor) -> None:
        """Add a batch of predictions and targets (B, E); equal `ids`, (B,) integers, mean equal target text."""
        self.ids.append(integers("ids", ids, len(predictions)).detach())
        self.predictions.append(predictions.detach())
        self.targets.append(targets.detach())

    def compute(self) -> dict[str, Tensor]:
        """Scalars: ``retrieval@k`` of a prediction's own text among the distinct targets, for each k that they are
        enough for; ``rankme`` of the predictions, ``paired_cosine`` and ``unpaired_cosine``, with the errors of these.
        """
        predictions, targets, ids = (dim_zero_cat(state) for state in (self.predictions, self.targets, self.ids))
        paired = paired_cosine(predictions, targets)
        distinct, labels = ids.unique(return_inverse=True)
        rows = torch.arange(len(ids), device=ids.device)
        first = rows.new_full((len(distinct),), len(ids)).scatter_reduce(0, labels, rows, "amin")
        ranks = retrieval_ranks(predictions, targets[first], ids, distinct)
        return {
            **{f"retrieval@{k}": ranks.recall(k).float().mean() for k in self.ks if k <= len(distinct)},
            "rankme": rankme(predictions),
            "paired_cosine": paired,
            "unpaired_cosine": unpaired_cosine(predictions, targets, ids),
        }
