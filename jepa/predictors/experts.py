"""Sparse experts: a feed-forward layer of which each token uses a part.

T tokens, N routed experts, K of them active for a token, D width, H hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa.errors import InputError, check_int, check_nonnegative
from jepa.losses.gather import GlobalBatch


@dataclass(frozen=True)
class Mixture:
    """Sizes of a mixture of experts. The grouped product needs multiples of 8 for the hidden width and the width D.

    >>> Mixture(experts=8, top_k=2, hidden=64).shared
    1
    """

    experts: int  # N, routed
    top_k: int  # K, routed experts that are active for a token
    hidden: int  # H, width of an expert
    shared: int = 1  # experts that are active for every token
    balance_weight: float = 0.01  # of each layer's load-balancing loss, α of Switch Transformers

    def __post_init__(self) -> None:
        for name, least in (("experts", 1), ("top_k", 1), ("hidden", 1), ("shared", 0)):
            check_int(name, getattr(self, name), least)
        check_nonnegative("balance_weight", self.balance_weight)
        if self.top_k > self.experts:
            raise InputError(f"top_k must be <= experts {self.experts}, got {self.top_k}")


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a forward pass went.

    >>> Routing(torch.full((4, 2), 0.5), torch.tensor([[0], [0], [0], [1]]), balance_weight=0.01).load
    tensor([1.5000, 0.5000])
    """

    probabilities: Tensor  # (T, N) of the router, with gradient
    chosen: Tensor  # (T, K) experts of each token, the likeliest first
    balance_weight: float  # of the layer

    @property
    def load(self) -> Tensor:
        """(N,): tokens of each expert over those of an even load, K·T / N."""
        tokens = torch.bincount(self.chosen.flatten(), minlength=self.probabilities.shape[1])
        return tokens * (len(tokens) / self.chosen.numel())


def load_balancing_loss(probabilities: Tensor, chosen: Tensor, *, gather: bool = False) -> Tensor:
    """N · Σ_i f_i · P_i: f_i is the fraction of the choices that fell on expert i, P_i its mean probability.

    Switch Transformers (arXiv 2101.03961, equations 4 to 6) for K = 1, DeepSeekMoE (arXiv 2401.06066, equations 12 to
    14) for any K, both without their weight α. An even load gives 1, and N is the most that K = 1 can give. Gradients
    flow through P alone. `probabilities` are (T, N), `chosen` (T, K); `gather` balances the tokens of all ranks
    (`jepa.losses.gather`).

    >>> load_balancing_loss(torch.full((4, 2), 0.5), chosen=torch.tensor([[0], [1], [0], [1]]))
    tensor(1.)
    """
    experts = probabilities.shape[1]
    batch = GlobalBatch.around(probabilities, gather)
    choices = batch.sum(torch.bincount(chosen.flatten(), minlength=experts).to(probabilities.dtype))
    fractions, means = choices / (chosen.shape[1] * batch.total), batch.sum(probabilities.sum(0)) / batch.total
    return experts * (fractions * means).sum()  # a product of vectors would be rounded by autocast


class Experts(nn.Module):
    """A feed-forward layer of N routed experts, K active for a token, and of shared ones that always are.

    The router is Mixtral's (arXiv 2401.04088, section 2.1): the K largest of a softmax, divided by their sum. With K
    = 1 that would leave no gradient, and the probability itself is the gate (Switch Transformers, equation 2). Shared
    experts are those of DeepSeekMoE (arXiv 2401.06066, section 3.2): added without a gate, and computed as one layer.
    An expert is two matrices around a GELU, without biases. No token is dropped, and none depends on the others.

    Tokens (T, D), none of them padding, are sorted by expert and multiplied by torch's grouped product: half, bfloat16
    and float32 on CPU and CUDA, widths of whole 16 bytes. Otherwise, or with `grouped` set to False, experts are
    computed one after the other, with the same FLOPs. The router computes in float32 or wider.

    >>> layer = Experts(8, Mixture(experts=4, top_k=2, hidden=16))
    >>> outputs, routing = layer(torch.zeros(6, 8))
    >>> outputs.shape, routing.chosen.shape
    (torch.Size([6, 8]), torch.Size([6, 2]))
    """

    def __init__(self, width: int, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.grouped = True
        self.router = nn.Linear(width, mixture.experts, bias=False)
        self.up = nn.Parameter(torch.empty(mixture.experts, width, mixture.hidden))
        self.down = nn.Parameter(torch.empty(mixture.experts, mixture.hidden, width))
        for weight in (self.up, self.down):  # as nn.Linear
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        self.shared = Mlp(width, mixture.shared * mixture.hidden, bias=False) if mixture.shared else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        device, top_k = tokens.device.type, self.mixture.top_k
        # torch's grouped product does not know of autocast.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        gates, routing = self.route(tokens)
        order = routing.chosen.flatten().argsort(stable=True)
        counts = torch.bincount(routing.chosen.flatten(), minlength=self.mixture.experts)
        rows = tokens.to(dtype)[:, None].expand(-1, top_k, -1).flatten(0, 1).index_select(0, order)
        rows = self._product(F.gelu(self._product(rows, self.up.to(dtype), counts)), self.down.to(dtype), counts)
        outputs = rows.index_select(0, order.argsort()).view(len(tokens), top_k, -1)
        result = (gates[..., None].to(dtype) * outputs).sum(1)
        return (result if self.shared is None else result + self.shared(tokens)), routing

    def route(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        """(T, D) -> gates (T, K) and the `Routing`."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            probabilities = F.linear(tokens.to(wide), self.router.weight.to(wide)).softmax(-1)
        gates, chosen = probabilities.topk(self.mixture.top_k)
        if self.mixture.top_k > 1:
            gates = gates / gates.sum(-1, keepdim=True)
        return gates, Routing(probabilities, chosen, self.mixture.balance_weight)

    def _product(self, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
        aligned = all(size * rows.itemsize % 16 == 0 for size in weights.shape[1:])
        known = rows.dtype in (torch.float32, torch.float16, torch.bfloat16) and rows.device.type in ("cpu", "cuda")
        if self.grouped and known and aligned:
            return F.grouped_mm(rows, weights, offs=counts.cumsum(0).to(torch.int32))
        groups = rows.split(counts.tolist())
        return torch.cat([group @ weight for group, weight in zip(groups, weights, strict=True)])


class ExpertBlock(Block):
    """timm's block with `Experts` for its feed-forward layer; padding is not routed and keeps what attention gave it.

    `forward` takes (B, L, D) and a mask (B, 1, 1, L), true at real tokens, and returns (B, L, D).

    >>> block = ExpertBlock(8, heads=2, mixture=Mixture(experts=4, top_k=2, hidden=16))
    >>> block(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, width: int, heads: int, mixture: Mixture) -> None:
        super().__init__(width, heads, qkv_bias=True, mlp_layer=nn.Identity)
        self.mlp = Experts(width, mixture)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        tokens = self.norm2(x).flatten(0, 1)
        if attn_mask is None:
            return x + self.mlp(tokens)[0].view_as(x)
        real = attn_mask.flatten().nonzero()[:, 0]
        outputs, _ = self.mlp(tokens.index_select(0, real))
        return x.flatten(0, 1).index_add(0, real, outputs.to(x.dtype)).view_as(x)


@contextmanager
def recorded_routing(module: nn.Module) -> Iterator[list[Routing]]:
    """Collects the `Routing` of each forward pass of each `Experts` in `module`, in the order in which they run."""
    routings: list[Routing] = []
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output: routings.append(output[1]))
        for layer in module.modules()
        if isinstance(layer, Experts)
    ]
    try:
        yield routings
    finally:
        for handle in handles:
            handle.remove()


def active_parameters(module: nn.Module) -> int:
    """Parameters of `module` without those of routed experts that a token does not use.

    >>> layer = Experts(8, Mixture(experts=4, top_k=1, hidden=16, shared=0))
    >>> active_parameters(layer)  # the router, and one expert of two matrices
    288
    """
    count = sum(p.numel() for p in module.parameters())
    for layer in module.modules():
        if isinstance(layer, Experts):
            count -= (layer.mixture.experts - layer.mixture.top_k) * (layer.up[0].numel() + layer.down[0].numel())
    return count
