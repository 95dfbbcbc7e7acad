"""Floating-point operations of a callable, counted while it runs.

M, K, N: sizes of a matrix product; B batch, H query heads, L queries, S keys, D key width, V value width.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from jepa.errors import InputError

# Words, between "_", in the name of an operation of torch that multiplies and adds: "mm" in `_sparse_mm`, not `lgamma`.
_COMPUTING = re.compile(
    r"(?:^|_)(?:"
    r"[a-z]*mm|matmul|mv|addmv|v?dot|addr|linear|trilinear|conv(?:olution|\dd)?|depthwise3d|affine_grid_generator"
    r"|attention|encoder_layer|rnn|lstm|gru|[cp]dist|euclidean_dist|fft"
    r"|linalg|cholesky|lu|spsolve|triangular_solve|linear_combination|geqrf|ormqr"
    r")(?:_|$)"
)
# Elementwise operations, reductions and preparations whose names have such a word.
_FREE = re.compile(
    r"_cudnn_rnn_flatten_weight|_linalg_check_errors|_thnn_fused_(?:gru|lstm)_cell(?:_backward(?:_impl)?)?"
    r"|linalg_(?:_powsum|cross|vector_norm)|lu_unpack"
)
# Libraries of operations known by the names above; operations of any other library are opaque.
_READABLE = {"aten", "prim", "prims", "c10d", "_c10d_functional", "profiler"}


@dataclass(frozen=True)
class FlopCount:
    """What `count_flops` counted."""

    total: int
    by_operator: dict[str, int]  # by the operation's name in torch, such as "aten.mm"
    result: Any = field(repr=False, compare=False)  # what the callable returned


def count_flops(run: Callable[[], Any]) -> FlopCount:
    """Call `run` once and count the floating-point operations of everything it executes, backward passes included.

    The formulas are those of torch's `FlopCounterMode` and those it lacks. Their conventions:

    - A multiply-add is 2 FLOPs, of any dtype.
    - Matrix products, convolutions and attention count. Elementwise operations, softmax, normalisation, reductions,
      interpolation, pooling and indexing do not.
    - Attention counts all L·S pairs of query and key, masked or not. Backward of a fused kernel counts the scores that
      it computes again: 5 products to the forward's 2, where separate matrix products make 4.
    - Convolutions count their padding; sparse operands count as dense; a grouped product counts every row it is given.
    - What runs counts: activations recomputed in the backward pass count twice.

    Only what passes torch's dispatcher is seen. Compiled functions run uncompiled; flex attention does not run at all.
    `torch.cond` counts the dearer branch.

    Raises:
        InputError: an operation that computes has no formula: of torch (recurrent layers, FFT, linear algebra, ...) or
            of another library. `torch.utils.flop_counter.register_flop_formula` gives it one.

    >>> count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)).total
    120
    """
    with _Counter() as counter:
        result = run()
    if counter.unknown:
        unknown = ", ".join(sorted(counter.unknown))
        raise InputError(f"an operation that computes must have a FLOP formula, got {unknown}")
    counts = {str(operator): int(flops) for operator, flops in counter.counts.items()}
    return FlopCount(sum(counts.values()), counts, result)


class _Counter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, without its counts of modules, in a fraction of its time.

    `unknown` collects the names of the operations that compute and have no formula.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.formulas: dict[Any, Callable[..., int]] = {**flop_registry, **_FORMULAS}
        self.counts = Counter[Any]()
        self.unknown = set[str]()
        self.whole = set[Any]()  # operations seen that have no parts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.higher_order.cond:
            return self._dearer(*args)
        if isinstance(func, torch._ops.HigherOrderOperator):
            return NotImplemented
        options = kwargs or {}
        if func not in self.whole:
            with self:
                parts = func.decompose(*args, **options)
            if parts is not NotImplemented:
                return parts
            self.whole.add(func)
        operator = func._overloadpacket
        formula = self.formulas.get(operator)
        if formula is None and _computes(func):
            self.unknown.add(str(operator))
        result = func(*args, **options)
        if formula is not None:
            self.counts[operator] += formula(*args, **options, out_val=result)
        return result

    def _dearer(self, _: Any, *branches: Any) -> Any:
        """Runs both branches of a condition, given with their operands; of each operation the larger count stays."""
        before, counted = self.counts, []
        for branch in branches[:2]:
            self.counts = Counter()
            with self:
                result = branch(*branches[2])
            counted.append(self.counts)
        self.counts = before + (counted[0] | counted[1])
        return result


@cache
def _computes(func: Any) -> bool:
    if func.namespace not in _READABLE:
        return True
    name = func._overloadpacket.__name__
    return _COMPUTING.search(name) is not None and _FREE.fullmatch(name) is None


# The formulas get shapes in place of tensors, then whatever else the operation takes.


def _product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """(M, K) x (K, N), or batches of these."""
    return 2 * prod(a) * b[-1]


def _grouped_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Rows of (M, K) in groups with one (K, N) each, or groups along another of the three axes."""
    return _product(a[-2:] if len(b) == 2 else a, b)


def _linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """(..., K) x (N, K) transposed."""
    return 2 * prod(x) * weight[0]


def _vector_product(a: Any, *_: Any, **__: Any) -> int:
    """(M, K) x (K,), or (K,) x (K,)."""
    return 2 * prod(a)


def _outer_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """(M,) x (N,)."""
    return 2 * a[0] * b[0]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """(B, H, L, D), (B, ., S, D), (B, ., S, V): the scores, and their product with the values."""
    return 2 * prod(query[:3]) * key[2] * (key[3] + value[3])


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """The scores again; gradients of weights and values; gradients of queries and keys."""
    return 2 * prod(query[:3]) * key[2] * (3 * key[3] + 2 * value[3])


def _convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Each gradient asked for, of x and of weight, costs what the forward convolution does.

    torch's own formula counts the gradient of a grouped convolution's weight once per group too often.
    """
    transposed, wanted = rest[4], rest[7]
    return 2 * x[0] * prod(weight) * prod((x if transposed else grad)[2:]) * (bool(wanted[0]) + bool(wanted[1]))


def _after_first(formula: Callable[..., int]) -> Callable[..., int]:
    """Of an operation whose first argument is added, or is a gradient, and does not matter."""
    return lambda _, *shapes, **options: formula(*shapes, **options)


# Formulas that torch lacks, in all of the versions supported or in some, or has wrong. The attention formulas of torch
# 2.11 refuse fewer key heads than query heads.
_FORMULAS = {
    getattr(torch.ops.aten, name): shape_wrapper(formula)
    for formula, names in {
        _product: "_int_mm _scaled_mm_v2",
        _after_first(_product): "addmm_ baddbmm_ addbmm addbmm_ _addmm_activation",
        _grouped_product: "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2",
        _vector_product: "mv dot vdot",
        _after_first(_vector_product): "addmv addmv_",
        _after_first(_outer_product): "addr addr_",
        _attention: """
            _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
            _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
            _scaled_dot_product_fused_attention_overrideable""",
        _attention_backward: """
            _scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward
            _scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward
            _scaled_dot_product_fused_attention_overrideable_backward""",
        _convolution_backward: "convolution_backward",
    }.items()
    for name in names.split()
    if hasattr(torch.ops.aten, name)
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _FORMULAS[torch.ops.mkldnn._linear_pointwise] = shape_wrapper(_linear)
