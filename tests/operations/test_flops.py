"""FLOP counts against products written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import refuses
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from jepa.errors import InputError
from jepa.operations import count_flops


def rand(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), **options)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> torch.Tensor:
    """A tensor without data: the operations of an accelerator run on it anywhere."""
    return torch.empty(*shape, device="meta", dtype=dtype, requires_grad=grad)


# Products by hand

PRODUCTS = {
    "mm": (lambda: rand(3, 4) @ rand(4, 5), 2 * 3 * 4 * 5),
    "mm.out": (lambda: torch.mm(rand(3, 4), rand(4, 5), out=torch.empty(3, 5)), 2 * 3 * 4 * 5),
    "linear": (lambda: F.linear(rand(2, 3, 4), rand(5, 4), rand(5)), 2 * 6 * 4 * 5),
    "einsum": (lambda: torch.einsum("bik,bjk->bij", rand(2, 3, 4), rand(2, 5, 4)), 2 * 2 * 3 * 4 * 5),
    "mv": (lambda: rand(3, 4) @ rand(4), 2 * 3 * 4),
    "dot": (lambda: rand(4) @ rand(4), 2 * 4),
    "vdot": (lambda: torch.vdot(rand(4), rand(4)), 2 * 4),
    "addmv": (lambda: torch.addmv(rand(3), rand(3, 4), rand(4)), 2 * 3 * 4),
    "addmv_": (lambda: rand(3).addmv_(rand(3, 4), rand(4)), 2 * 3 * 4),
    "addr": (lambda: torch.addr(rand(3, 4), rand(3), rand(4)), 2 * 3 * 4),
    "addr_": (lambda: rand(3, 4).addr_(rand(3), rand(4)), 2 * 3 * 4),
    "addmm_": (lambda: rand(3, 5).addmm_(rand(3, 4), rand(4, 5)), 2 * 3 * 4 * 5),
    "addbmm": (lambda: torch.addbmm(rand(3, 5), rand(2, 3, 4), rand(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "addbmm_": (lambda: rand(3, 5).addbmm_(rand(2, 3, 4), rand(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "baddbmm_": (lambda: rand(2, 3, 5).baddbmm_(rand(2, 3, 4), rand(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "int": (
        lambda: torch._int_mm(torch.ones(32, 16).to(torch.int8), torch.ones(16, 8).to(torch.int8)),
        2 * 32 * 16 * 8,
    ),
    "gru": (lambda: nn.GRU(3, 4)(rand(5, 1, 3)), 2 * 5 * (3 + 4) * 3 * 4),
    "elementwise": (lambda: torch.outer(rand(3), rand(4)).softmax(-1).lgamma().cummax(0), 0),
    "norm": (lambda: nn.utils.clip_grad_norm_([nn.Parameter(rand(3))], 1.0) + torch.linalg.vector_norm(rand(3)), 0),
    "interpolation": (lambda: F.interpolate(rand(1, 1, 4, 4), size=8, mode="bilinear"), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_hand(name):
    run, expected = PRODUCTS[name]
    count = count_flops(run)
    assert count.total == sum(count.by_operator.values()) == expected


@pytest.mark.parametrize(
    ("left", "right", "flops"),
    [
        ((6, 16), (2, 16, 24), 2 * 6 * 16 * 24),  # rows in groups, a matrix each
        ((2, 8, 16), (16, 24), 2 * 8 * 16 * 24),  # columns in groups
        ((8, 16), (16, 24), 2 * 8 * 16 * 24),  # the inner axis in groups
        ((2, 8, 16), (2, 16, 24), 2 * 2 * 8 * 16 * 24),
    ],
)
def test_grouped_products_by_hand(left, right, flops):
    offsets = None if len(left) == len(right) == 3 else meta(2, dtype=torch.int32)
    assert count_flops(lambda: torch._grouped_mm(meta(*left), meta(*right), offs=offsets)).total == flops


def test_scaled_products_by_hand():
    def run() -> None:
        eight = torch.float8_e4m3fn
        one, rows, columns = (meta(*shape, dtype=torch.float32) for shape in ((1,), (32,), (2, 48)))
        a, b, many = meta(32, 16, dtype=eight), meta(48, 16, dtype=eight), meta(2, 48, 16, dtype=eight)
        torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16)
        offsets = meta(2, dtype=torch.int32)
        torch._scaled_grouped_mm(a, many.mT, rows, columns, offs=offsets, out_dtype=torch.bfloat16)

    flops = 2 * 32 * 16 * 48
    assert count_flops(run).by_operator == {"aten._scaled_mm": flops, "aten._scaled_grouped_mm": flops}


def test_result_and_operators_are_returned():
    a = rand(3, 4)
    count = count_flops(lambda: a @ a.T)
    assert torch.equal(count.result, a @ a.T)
    assert count.by_operator == {"aten.mm": 72}


def test_the_registry_of_torch_is_left_alone():
    before = dict(flop_registry)
    count_flops(lambda: rand(3, 4) @ rand(4))
    assert flop_registry == before


# Convolutions: each point of the output is one product of a filter with a patch.


def test_convolution_by_hand():
    assert count_flops(lambda: F.conv2d(rand(2, 4, 5, 5), rand(6, 4, 3, 3))).total == 2 * (2 * 6 * 3 * 3) * (4 * 3 * 3)


@pytest.mark.parametrize("function", [F.conv2d, F.conv_transpose2d])
@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_convolution_costs_what_its_groups_cost_one_by_one(function, groups):
    x, weight = rand(2, 8, 6, 6, requires_grad=True), rand(8, 16 // groups, 3, 3, requires_grad=True)
    if function is F.conv2d:
        weight = rand(16, 8 // groups, 3, 3, requires_grad=True)

    def apart() -> None:
        for part, filters in zip(x.chunk(groups, 1), weight.chunk(groups), strict=True):
            function(part, filters, stride=2).sum().backward()

    together = count_flops(lambda: function(x, weight, stride=2, groups=groups).sum().backward())
    assert together.total == count_flops(apart).total
    assert together.by_operator["aten.convolution_backward"] == 2 * together.by_operator["aten.convolution"]


def test_only_the_gradients_asked_for_are_counted():
    x, weight = rand(1, 2, 5, 5), rand(4, 2, 3, 3, requires_grad=True)
    count = count_flops(lambda: F.conv2d(x, weight).sum().backward())
    assert count.by_operator["aten.convolution_backward"] == count.by_operator["aten.convolution"]


# Attention: 2 products forward; backward 4, or 5 where the scores are computed again.

FORWARD = 2 * 2 * 4 * 8 * 24 * 16  # one product: B = 2, H = 4, L = 8, S = 24, D = 16


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("backend", "backward"), [(SDPBackend.MATH, 4), (SDPBackend.FLASH_ATTENTION, 5)])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_on_a_cpu_counts_every_pair(causal, backend, backward, key_heads):
    query, key = rand(2, 4, 8, 16, requires_grad=True), rand(2, key_heads, 24, 16, requires_grad=True)

    def attend() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, key, is_causal=causal, enable_gqa=key_heads != 4)

    assert count_flops(attend).total == 2 * FORWARD
    assert count_flops(lambda: attend().sum().backward()).total == (2 + backward) * FORWARD


@pytest.mark.parametrize(("name", "options"), [("flash", ()), ("efficient", (None, True)), ("cudnn", (None, True))])
def test_attention_of_accelerators(name, options):
    operator = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention")
    query, key = meta(2, 4, 8, 16, grad=True), meta(2, 4, 24, 16, grad=True)
    count = count_flops(lambda: operator(query, key, key, *options)[0].sum().backward())
    assert count.by_operator == {str(operator): 2 * FORWARD, f"{operator}_backward": 5 * FORWARD}


# What has no formula


@torch.library.custom_op("jepa_test::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x @ x


UNKNOWN = {
    "_fft_r2c": lambda: torch.fft.rfft(rand(8)),
    "_linalg_svd": lambda: torch.linalg.matrix_norm(rand(3, 4), "nuc"),
    "linalg_qr": lambda: torch.linalg.qr(rand(3, 4)),
    "linalg_cholesky_ex": lambda: torch.linalg.cholesky(torch.eye(3)),
    "cholesky_inverse": lambda: torch.cholesky_inverse(torch.eye(3)),
    "_linalg_solve_ex": lambda: torch.linalg.solve(torch.eye(3), rand(3, 2)),
    "linalg_matrix_exp": lambda: torch.matrix_exp(rand(3, 3)),
    "_cdist_forward": lambda: torch.cdist(rand(3, 4), rand(3, 4)),
    "_euclidean_dist": lambda: torch.cdist(rand(30, 4), rand(30, 4)),
    "_trilinear": lambda: F.bilinear(rand(2, 3), rand(2, 4), rand(5, 3, 4)),
    "mkldnn_rnn_layer": lambda: nn.LSTM(3, 4)(rand(5, 1, 3)),
    "conv_tbc": lambda: torch.conv_tbc(rand(5, 2, 3), rand(3, 3, 4), rand(4)),
    "_sparse_addmm": lambda: torch.sparse.mm(torch.eye(3).to_sparse(), rand(3, 2)),
    "affine_grid_generator": lambda: F.affine_grid(rand(1, 2, 3), [1, 1, 4, 4], align_corners=False),
    "jepa_test.square": lambda: square(rand(3, 3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_formula_is_named(name):
    if name == "mkldnn_rnn_layer" and not torch.backends.mkldnn.is_available():
        pytest.skip("the layer is taken apart into products")
    refuses(rf"must have a FLOP formula, got \S*{name}$", lambda: count_flops(UNKNOWN[name]))


def test_the_fused_encoder_layer_is_named():
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with torch.no_grad(), pytest.raises(InputError, match="_transformer_encoder_layer_fwd"):
        count_flops(lambda: layer(rand(2, 3, 8)))


def test_of_a_condition_the_dearer_branch_counts():
    one = torch.ones(3, 3)
    for condition in (True, False):
        operands = torch.tensor(condition), lambda x: x @ x, lambda x: x @ x @ x, (one,)
        count = count_flops(lambda operands=operands: torch.ops.higher_order.cond(*operands) @ one)
        assert count.total == 2 * 3**3 * (2 + 1)
