"""What training steps cost, part by part: FLOPs, bytes of weights read and wall time, forward and backward."""

from __future__ import annotations

import operator
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from jepa.operations.flops import count_flops
from jepa.operations.ledger import TRAINING_PARTS, OperationLedger, weight_bytes

_MARKS_KEPT = 512  # of a GPU, until it is waited for


class TrainingMeter:
    """Fills `ledger` (of `TRAINING_PARTS`) while modules train, by hooks: nothing of what they compute changes.

    A step is `start`, a forward pass, `backward`, a backward pass, `update`, `stop`. Within it each call of a module
    counts for its part:

    - *FLOPs* forward and, where there is a gradient, backward, as by `count_flops`; recomputed passes count again. Each
      shape of a row is counted once, apart from training, since parts treat rows on their own. Sparse experts skip
      padding: the cost of a row is linear in the real tokens of its boolean masks, and is counted at two numbers of
      them, unless padding made no difference at first. Losses compare rows: they are counted for each shape of the
      batch, and not at all with several processes, where counting would have to gather. The optimizer counts 0.
    - *Bytes of weights*: all parameters, once forward and once backward; in `optimizer` those updated.
    - *Wall seconds* from a part's start, forward or backward, to the next mark. What lies between parts is `loss`, what
      follows the backward pass `optimizer`. Waiting for data is no part. Backward passes that run in parallel mix.

    On a GPU marks are events of the stream, and the host does not wait for them.

    Args:
        parts: the modules of each part, called with a batch in the first dimension of every tensor that they get.
        losses: modules whose operations count as `loss`.

    >>> layer = nn.Linear(4, 2)
    >>> meter = TrainingMeter({"encoder": [layer]})
    >>> meter.start(torch.device("cpu"))
    >>> loss = layer(torch.ones(3, 4)).sum()
    >>> meter.backward()
    >>> loss.backward()
    >>> meter.update()
    >>> meter.stop(updated=None)
    >>> meter.ledger.encoder.flops  # forward, and the gradient of the weights
    96
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], losses: Sequence[nn.Module] = ()) -> None:
        self.ledger = OperationLedger(TRAINING_PARTS)
        self._flops: dict[Any, tuple[_Cost, _Cost]] = {}
        self._skips_padding: dict[int, bool] = {}  # by module: whether padding costs less than a token, once known
        self._marks: list[tuple[str | None, Any]] = []
        self._running, self._again = False, False
        self._device = torch.device("cpu")
        self._handles = [
            handle
            for part, modules in parts.items()
            for module in modules
            for handle in self._watch(part, module, rowwise=True)
        ]
        self._handles += [handle for module in losses for handle in self._watch("loss", module, rowwise=False)]

    def start(self, device: torch.device) -> None:
        """A batch begins."""
        self._running, self._device = True, device
        self._mark("loss")

    def backward(self) -> None:
        """The backward pass begins: forward passes from now on are made again."""
        self._again = True

    def update(self) -> None:
        """The backward pass has ended."""
        self._again = False
        self._mark("optimizer")

    def stop(self, updated: int | None) -> None:
        """The batch has ended; `updated`: the bytes of the weights that the optimizer has updated, None: it has not."""
        self._mark(None)
        self._running = False
        if updated is not None:
            self.ledger.steps(1)
            self.ledger.count("optimizer", calls=1, weight_bytes=updated)
        if self._device.type != "cuda" or len(self._marks) >= _MARKS_KEPT:
            self._settle()

    def remove(self) -> None:
        """Takes the hooks away, and adds the time that is left."""
        self._settle()
        for handle in self._handles:
            handle.remove()

    def record(self) -> dict[str, Any]:
        """Plain data: `steps`, and `parts` with the counts of all steps (see `PartCount`)."""
        counts = self.ledger.to_dict()
        return {"steps": self.ledger.step_count, "parts": {part: counts[part] for part in TRAINING_PARTS}}

    def _mark(self, part: str | None) -> None:
        """From now on the time is `part`'s; None: no part's."""
        stamp: Any = time.perf_counter()
        if self._device.type == "cuda":
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        self._marks.append((part, stamp))

    def _settle(self) -> None:
        if self._marks and self._device.type == "cuda":
            torch.cuda.synchronize()
        for (part, begin), (_, end) in pairwise(self._marks):
            if part is not None:
                seconds = begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin
                self.ledger.count(part, seconds=seconds)
        self._marks.clear()

    def _watch(self, part: str, module: nn.Module, rowwise: bool) -> list[Any]:
        read, before_it = weight_bytes(module), "loss"

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal before_it
            if self._running:
                before_it = self._marks[-1][0] or "loss"
                self._mark(part)
                if self._again:  # counted here: it may stop before its end
                    self._count(part, module, args, kwargs, rowwise, read, backward=False)

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._running:
                return
            if not self._again:
                tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
                for tensor in tensors:
                    tensor.register_hook(lambda _: self._mark(part))
                self._count(part, module, args, kwargs, rowwise, read, backward=bool(tensors))
            self._mark(before_it)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _count(
        self, part: str, module: nn.Module, args: Any, kwargs: Any, rowwise: bool, read: int, backward: bool
    ) -> None:
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        rows = max(t.shape[0] for t in inputs)
        padding = [t.numel() - int(t.sum()) for t in inputs if t.dtype == torch.bool]
        padded = tuple(map(bool, padding))  # a mask may choose another kernel
        key = (id(module), *(tuple(t.shape[rowwise:]) for t in inputs), padded)
        if key not in self._flops:
            if rowwise:
                telling = padded if self._skips_padding.get(id(module), True) else (False,) * len(padded)
                self._flops[key] = costs = _of_rows(module, args, kwargs, telling)
                if telling and all(telling) and min(t.shape[-1] for t in inputs if t.dtype == torch.bool) > 2:
                    self._skips_padding[id(module)] = any(any(cost.saved) for cost in costs)
            else:
                alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
                forth, back = _flops(module, args, kwargs) if alone else (0, 0)
                self._flops[key] = _Cost(forth), _Cost(back)
        forward, gradients = self._flops[key]
        count = rows if rowwise else 1
        flops = forward.of(count, padding) + gradients.of(count, padding) * backward
        self.ledger.count(part, calls=rows, forward_passes=1, flops=flops, weight_bytes=read * (1 + backward))


@dataclass(frozen=True)
class _Cost:
    """FLOPs of a row of which nothing is padding, and what a padded place of each boolean mask takes off them."""

    full: int
    saved: tuple[int, ...] = ()

    def of(self, rows: int, padding: Sequence[int]) -> int:
        """FLOPs of `rows` rows with so many padded places of each mask in them."""
        return rows * self.full - sum(map(operator.mul, self.saved, padding))


def _of_rows(module: nn.Module, args: Any, kwargs: Any, padded: Sequence[bool]) -> tuple[_Cost, _Cost]:
    """What rows of these shapes cost, forward and backward; `padded`: which of the masks have padding.

    Without padding one row is counted. With some, two are, a full one and one with a single real token: a mask must
    stay a mask. Then for each padded mask both rows have a single token: the difference is what L - 1 places cost.
    """
    leaves, structure = tree_flatten((args, kwargs))
    masks = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
    chosen = [i for i, has_padding in zip(masks, padded, strict=True) if has_padding and leaves[i].ndim == 2]

    def count(emptier: int | None) -> tuple[int, int]:
        rows = list(leaves)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                row = int((~leaf).flatten(1).sum(1).argmax()) if i in masks else 0  # a padded one, if any
                rows[i] = leaf[row : row + 1].detach().repeat_interleave(2 if chosen else 1, 0)
                rows[i].requires_grad_(leaf.requires_grad)
            if i in chosen:
                rows[i][:] = torch.arange(leaf.shape[1], device=leaf.device) < min(1, leaf.shape[1] - 1)
                rows[i][1] |= i != emptier
        return _flops(module, *tree_unflatten(rows, structure))

    together = count(None)
    fewer = {i: count(i) for i in chosen}
    costs = []
    for direction in range(2):
        less = {i: together[direction] - each[direction] for i, each in fewer.items()}
        full = (together[direction] + sum(less.values())) // (2 if chosen else 1)
        costs.append(_Cost(full, tuple(less.get(i, 0) // max(leaves[i].shape[-1] - 1, 1) for i in masks)))
    return costs[0], costs[1]


def _flops(module: nn.Module, args: Any, kwargs: Any) -> tuple[int, int]:
    """FLOPs of a call and of its gradients, which leaves no trace in hooks, random numbers and buffers."""
    wanted = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    wanted += [p for p in module.parameters() if p.requires_grad]
    forward: Any = type(module).forward  # not a compiled one, and without hooks
    devices = [t.device for t in wanted if t.is_cuda][:1]
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)  # not those of a checkpoint around it
    with _as_it_was(module), torch.random.fork_rng(devices), keep, torch.enable_grad():
        forth = count_flops(lambda: forward(module, *args, **kwargs))
        outputs = [t for t in tree_leaves(forth.result) if isinstance(t, Tensor) and t.requires_grad]
        if not outputs:
            return forth.total, 0
        ones = [torch.ones_like(t) for t in outputs]
        back = count_flops(lambda: torch.autograd.grad(outputs, wanted, ones, allow_unused=True))
    return forth.total, back.total


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """The modules in `module` without their hooks and with copies of their buffers, for the time being."""
    before = []
    for each in module.modules():
        attributes = vars(each)
        copies = {name: None if buffer is None else buffer.clone() for name, buffer in each._buffers.items()}
        instead = {"_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict(), "_buffers": copies}
        before.append((attributes, {name: attributes[name] for name in instead}))
        attributes.update(instead)
    try:
        yield
    finally:
        for attributes, found in before:
            attributes.update(found)
