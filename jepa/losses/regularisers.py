"""Regularisers of one batch of latents, against collapse: VICReg's and SIGReg. Add them to a distance.

Both are statistics of a batch, so that means over ranks do not do: they gather the batch of all ranks.

B: rows of this rank; G: rows of all ranks; E: embedding dimensions; P: directions. In float32 at least, always.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError, check_int
from jepa.losses.gather import GlobalBatch, broadcast
from jepa.losses.inputs import matched, matrix


def vicreg(latents: Tensor, gather: bool = False) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of VICReg (Bardes et al. 2022, arXiv 2105.04906, eq. 1–4).

    Scalars: the mean over dimensions of max(0, 1 − √(Var + 1e-4)), in [0, 1), and the sum of squared covariances of
    different dimensions, divided by E; variances and covariances are unbiased. `latents` (B, E) are not normalised,
    with G >= 2, else `InputError` is raised. With `gather` the terms are of the batches of all ranks, which may differ
    in size, and the same on all ranks.

    >>> vicreg(torch.zeros(4, 2))  # collapsed: no variance, no covariance
    (tensor(0.9900), tensor(0.))
    """
    latents = matrix("latents", latents)
    latents = GlobalBatch.around(latents, gather).gather(latents)
    rows, width = latents.shape
    if rows < 2:
        raise InputError(f"latents must have at least 2 rows for a variance, got {rows}")
    centred = latents - latents.mean(dim=0)
    with torch.autocast(latents.device.type, enabled=False):
        covariance = centred.T @ centred / (rows - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    deviations = (centred.square().sum(dim=0) / (rows - 1) + 1e-4).sqrt()
    return F.relu(1 - deviations).mean(), off_diagonal.square().sum() / width


def sigreg(latents: Tensor, directions: Tensor, limit: float = 5.0, knots: int = 9, gather: bool = False) -> Tensor:
    """Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero and LeCun 2025, arXiv 2511.08544, Algorithm 1).

    For each direction, the Epps–Pulley statistic of the latents' projections against the standard normal:
    G ∫ |φ(t) − exp(−t²/2)|² exp(−t²/2) dt, φ the empirical characteristic function, by the trapezoid rule. The paper
    has 17 knots from −5 to 5; the integrand is even, so that 9 knots from 0 to 5, doubled, give the same value.

    Returns a scalar >= 0, the mean over directions. As in the paper it carries the number of rows: its expectation is
    the same at every G for standard normal latents, and grows with G for others.

    `latents` (B, E) are not normalised, `directions` (P, E) of unit norm. The integral has `knots` >= 2 from 0 to
    `limit` > 0; anything else raises `InputError`. With `gather` latents are those of all ranks, in batches that may
    differ in size; the directions have to be the same there, and the value is.

    >>> latents = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    >>> sigreg(latents, torch.eye(4)) < sigreg(latents + 3, torch.eye(4))
    tensor(True)
    """
    if not limit > 0 or knots < 2:
        raise InputError(f"limit must be > 0 and knots >= 2, got {limit} and {knots}")
    latents, directions = matrix("latents", latents), matrix("directions", directions)
    if latents.shape[1] != directions.shape[1]:
        widths = f"{latents.shape[1]} and {directions.shape[1]}"
        raise InputError(f"latents and directions must have the same E, got {widths}")
    batch = GlobalBatch.around(latents, gather)
    t = torch.linspace(0, limit, knots, dtype=latents.dtype, device=latents.device)
    normal = torch.exp(-t.square() / 2)
    with torch.autocast(latents.device.type, enabled=False):
        projections = latents @ directions.to(latents.dtype).T
    angles = projections[:, :, None] * t  # (B, P, K)
    real, imaginary = batch.sum(torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])) / batch.total
    error = (real - normal).square() + imaginary.square()
    return 2 * batch.total * torch.trapezoid(error * normal, t, dim=1).mean()


class VICReg(nn.Module):
    """`vicreg`'s terms with weights >= 0, the mean of predictions and targets (eq. 6 has the sum), over all ranks.

    The third term of VICReg, the invariance, is `MSE`; the paper gives it weight 25.

    >>> VICReg(variance=25.0)(torch.zeros(4, 2), torch.zeros(4, 2))
    tensor(24.7500)
    """

    unit_norm = False

    def __init__(self, variance: float = 25.0, covariance: float = 1.0, gather: bool = True) -> None:
        super().__init__()
        if not min(variance, covariance) >= 0:
            raise InputError(f"variance and covariance must be >= 0, got {variance} and {covariance}")
        self.variance, self.covariance, self.gather = variance, covariance, gather

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        terms = [vicreg(latents, self.gather) for latents in matched(predictions, targets)]
        return torch.stack([self.variance * spread + self.covariance * shared for spread, shared in terms]).mean()


class SIGReg(nn.Module):
    """`sigreg` on directions drawn anew at each call, the mean of predictions and targets, over all ranks.

    Directions come from torch's global generator; those of rank 0 hold for all ranks.

    >>> SIGReg(projections=8)(torch.zeros(16, 4), torch.zeros(16, 4)) > 1  # collapsed
    tensor(True)
    """

    unit_norm = False

    def __init__(self, projections: int = 256, limit: float = 5.0, knots: int = 9, gather: bool = True) -> None:
        super().__init__()
        self.projections = check_int("projections", projections, 1)
        self.limit, self.knots, self.gather = limit, knots, gather

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        both = matched(predictions, targets)
        directions = F.normalize(both[0].new_empty(self.projections, both[0].shape[1]).normal_(), dim=1)
        if self.gather:
            directions = broadcast(directions)
        costs = [sigreg(latents, directions, self.limit, self.knots, self.gather) for latents in both]
        return torch.stack(costs).mean()
