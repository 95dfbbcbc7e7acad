"""X-Encoders of frames and what they share: a timm vision transformer with time embedded; states from disk.

B clips, F frames a clip, T = F / tubelet time slots, P patches a slot, N = T * P states, D width, S pixels a side.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_int

if TYPE_CHECKING:
    from typing_extensions import Self

_DIFFERENCE_GAIN = 2.0  # brings frame differences to about the scale of the frames


def check_frames(frames: Tensor, size: int, tubelet: int) -> None:
    """Raises `InputError` unless `frames` is (B, F, size, size, 3) uint8 and F a multiple of `tubelet`."""
    if frames.ndim != 5 or frames.shape[2:] != (size, size, 3) or frames.dtype != torch.uint8:
        raise InputError(f"frames must be (B, F, {size}, {size}, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")
    if frames.shape[1] % tubelet:
        raise InputError(f"the number of frames must be a multiple of tubelet {tubelet}, got {frames.shape[1]}")


def given_states(states: Tensor, width: int) -> Tensor:
    """States that were computed before; raises `InputError` unless they are (B, N, width), floating point."""
    if states.ndim != 3 or states.shape[2] != width or not states.is_floating_point():
        raise InputError(f"states must be (B, N, {width}) floats, got {tuple(states.shape)} {states.dtype}")
    return states


class FrozenWhere(nn.Module):
    """An encoder of normalised pixels that can be frozen: no gradients, and evaluation mode for good.

    `mean` and `std` of red, green and blue (0 to 1) normalise its pixels.

    >>> module = FrozenWhere()
    >>> module.freeze()
    >>> module.train().training
    False
    """

    mean: list[float]
    std: list[float]
    gradient_checkpointing: bool
    frozen = False

    def freeze(self) -> None:
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def node(self) -> dict[str, object]:
        """The `_target_` node that builds it again, without a hub and with random weights."""
        names = ("frozen", "gradient_checkpointing", "mean", "std")
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"_target_": target, **{name: getattr(self, name) for name in names}}

    def pixels(self, frames: Tensor) -> Tensor:
        """(..., 3) uint8 -> float32, normalised."""
        mean, std = (frames.new_tensor(values, dtype=torch.float32) for values in (self.mean, self.std))
        return (frames / 255 - mean) / std


class FeatureEncoder(nn.Module):
    """In place of an X-Encoder where only its states are at hand: the "frames" are states (B, N, `width`), passed on.

    >>> FeatureEncoder(8)(torch.ones(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    size, tubelet = 0, 1  # it sees no frames

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = check_int("width", width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return given_states(frames, self.width)


class SlotsInTime(nn.Module):
    """An X-Encoder that encodes each time slot on its own."""

    width: int

    def encode_slots(self, frames: Tensor) -> Tensor:
        """States of each time slot, without the time embedding: (B, F, S, S, 3) uint8 -> (B, T, P, D)."""
        raise NotImplementedError

    def add_time(self, slots: Tensor) -> Tensor:
        """(B, T, P, D) states of a window's slots, oldest first -> (B, N, D) with the slot's time added."""
        return (slots + time_embedding(slots.shape[1], self.width).to(slots)[:, None]).flatten(1, 2)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, S, S, 3) uint8 -> states S_X (B, N, D)."""
        return self.add_time(self.encode_slots(frames))


class FrameViT(SlotsInTime):
    """Runs a timm ViT on each group of `tubelet` consecutive frames and adds an embedding of the group's time.

    The group's first frame and the differences of the further ones are stacked as channels: the patch embedding sees
    motion (V-JEPA's tubelets, arXiv 2404.08471, with a 2-D ViT). Sliding windows over a stream share their slots.

    >>> vit = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    >>> encoder = FrameViT("vit_tiny_patch16_224", size=32, tubelet=2, **vit)
    >>> encoder(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).shape  # 2 time slots of 4 patches
    torch.Size([1, 8, 32])
    """

    def __init__(self, name: str, size: int, tubelet: int = 2, **vit: Any) -> None:
        super().__init__()
        if tubelet < 1:
            raise InputError(f"tubelet must be >= 1, got {tubelet}")
        if not timm.is_model(name):
            raise InputError(f"name must be a timm model, got {name!r}")
        self.size, self.tubelet = size, tubelet
        model: Any = timm.create_model(
            name,
            img_size=size,
            in_chans=3 * tubelet,
            num_classes=0,
            class_token=False,
            global_pool="avg",
            fc_norm=False,  # the final norm comes before pooling: the states are what is used
            embed_layer=ConvStem,
            **vit,
        )
        self.vit, self.width = model, int(model.num_features)

    def encode_slots(self, frames: Tensor) -> Tensor:
        check_frames(frames, self.size, self.tubelet)
        count, length = frames.shape[:2]
        slots = length // self.tubelet
        pixels = frames.reshape(count * slots, self.tubelet, self.size, self.size, 3).permute(0, 1, 4, 2, 3)
        pixels = pixels.float().div_(127.5).sub_(1.0)
        pixels = torch.cat([pixels[:, :1], _DIFFERENCE_GAIN * pixels.diff(dim=1)], dim=1).flatten(1, 2)
        states: Tensor = self.vit.forward_features(pixels)
        return states.reshape(count, slots, *states.shape[1:])


class ConvStem(nn.Module):
    """Patch embedding by two convolutions (Xiao et al. 2021, arXiv 2106.14881): learns faster than one linear map.

    A non-overlapping 4 x 4 convolution to half the width, then a 3 x 3 convolution with the stride that is left.
    `forward`: (B, C, S, S) -> (B, P, D).

    >>> ConvStem(img_size=32, patch_size=8, in_chans=3, embed_dim=16)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 16, 16])
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True, **unused: Any
    ) -> None:
        super().__init__()
        if img_size % patch_size or patch_size % 4:
            raise InputError(f"patch_size must be a multiple of 4 that divides size {img_size}, got {patch_size}")
        self.grid_size = (img_size // patch_size,) * 2
        self.num_patches = self.grid_size[0] ** 2
        self.patch_size = (patch_size, patch_size)
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, kernel_size=4, stride=4),
            nn.GroupNorm(1, embed_dim // 2),
            nn.GELU(),
            nn.Conv2d(embed_dim // 2, embed_dim, kernel_size=3, stride=patch_size // 4, padding=1, bias=bias),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


def time_embedding(slots: int, width: int) -> Tensor:
    """Sinusoids (T, D) over the slot index (Vaswani et al. 2017, section 3.5, with base 100: windows are short)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(100.0) / width))
    angle = torch.arange(slots)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
