"""Sharded data parallelism: each process holds a part of every parameter (ZeRO, arXiv 1910.02054; torch's FSDP 2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from jepa.errors import InputError


def shard(part: nn.Module, mesh: DeviceMesh) -> None:
    """Shares the parameters of `part` out over a mesh of one dimension: block by block where it has a list of blocks.

    A block's parameters are gathered for its forward and its backward pass, and the mean of its gradients is shared
    out again. Raises `InputError` if torch cannot shard a parameter.
    """
    blocks = [block for module in part.modules() if isinstance(module, nn.ModuleList) for block in module]
    try:
        for module in (*reversed(blocks), part):  # inner ones first
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    except ValueError as reason:
        raise InputError(f"{type(part).__name__} cannot be sharded: {reason}") from None


def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Loads the parameters of `sharded` into `whole`, the same module unsharded, in every process."""
    whole.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True)))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` of sharded and of whole parameters; the latter first get the processes' mean."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    for gradient in whole:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    norms = [nn.utils.get_total_norm(kind) for kind in (sharded, whole) if kind]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    factor = (limit / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient *= factor
