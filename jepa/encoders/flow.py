"""How the patches of a video move, for image models that see its frames one by one.

B slots, F frames a slot, S pixels a side, P = grid * grid patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError

PATCH_CHANNELS = 25  # of a pair of frames: five numbers for the patch and for each of its quarters
_CELL = 4  # pixels a side that have one flow
_WINDOW = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)  # weights of the pixels around a cell, a side
_LONGEST = 3.0  # pixels a frame: what is faster cannot be told
_FLAT = 3e-3  # squared gradients at which a cell counts as half flat, of pixels in [-1, 1]


def optical_flow(frames: Tensor, grid: int) -> Tensor:
    """Flow of each patch between frames that follow each other: (B, F, S, S, 3) uint8 -> (B, P, 25 * (F - 1)) float32.

    The flow (u, v) of a cell of 4 x 4 pixels explains best, over a window of 12 x 12 pixels and all colours, the
    difference of two frames by their gradients: ridge regression on I_x u + I_y v = -I_t (Lucas and Kanade, 1981).
    Frames are averaged to two sizes, at which a patch is one cell and four. Each cell gives u, v and their length, in
    pixels of that size and at most 3, and the logarithms of its mean squared I_t and gradient.

    Raises:
        InputError: patches are no multiple of 8 pixels a side.

    >>> frames = torch.randint(0, 255, (2, 4, 64, 64, 3), dtype=torch.uint8)
    >>> optical_flow(frames, grid=4).shape
    torch.Size([2, 16, 75])
    """
    count, length, size = frames.shape[:3]
    if size % (8 * grid):
        raise InputError(f"patches must be a multiple of 8 pixels a side for their flow, got {size} pixels / {grid}")
    pixels = frames.permute(0, 1, 4, 2, 3).contiguous().float().div_(127.5).sub_(1.0).flatten(0, 1)
    fine = F.avg_pool2d(pixels, size // (2 * _CELL * grid))
    quarters = _cells(fine.unflatten(0, (count, length)))
    whole = _cells(F.avg_pool2d(fine, 2).unflatten(0, (count, length)))
    quarters = quarters.unflatten(-1, (grid, 2)).unflatten(-3, (grid, 2)).transpose(-3, -2)  # (B, F - 1, 5, g, g, 2, 2)
    quarters = quarters.permute(0, 3, 4, 1, 2, 5, 6).flatten(-3)
    return torch.cat([quarters, whole.permute(0, 3, 4, 1, 2)], dim=-1).flatten(3).flatten(1, 2)


def _cells(pixels: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, F - 1, 5, H / 4, W / 4)."""
    middle, time = (pixels[:, 1:] + pixels[:, :-1]) / 2, pixels.diff(dim=1)
    padded = F.pad(middle.flatten(0, 1), (1, 1, 1, 1), mode="replicate").unflatten(0, middle.shape[:2])
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    along = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    pairs = ((across, across), (along, along), (across, along), (across, time), (along, time), (time, time))
    products = torch.stack([(one * other).sum(2) for one, other in pairs], dim=2).flatten(0, 1)
    window = products.new_tensor(_WINDOW)
    window = (window[:, None] * window)[None, None].expand(6, 1, -1, -1)
    beyond = (len(_WINDOW) - _CELL) // 2
    weight = F.conv2d(torch.ones_like(products[:1, :1]), window[:1], stride=_CELL, padding=beyond)  # within the frame
    means = F.conv2d(products, window, groups=6, stride=_CELL, padding=beyond) / weight
    xx, yy, xy, xt, yt, tt = means.unflatten(0, middle.shape[:2]).unbind(2)
    a, b = xx + _FLAT, yy + _FLAT
    area = a * b - xy * xy
    u, v = (xy * yt - b * xt) / area, (xy * xt - a * yt) / area
    speed = torch.hypot(u, v).clamp(max=_LONGEST)
    energies = [(each + 1e-4).log() / 3 + 2 for each in (tt, xx + yy)]  # about -1 to 3
    return torch.stack([u.clamp(-_LONGEST, _LONGEST), v.clamp(-_LONGEST, _LONGEST), speed, *energies], dim=2)
