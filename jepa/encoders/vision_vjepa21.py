"""X-Encoder: V-JEPA 2.1, from its published checkpoints.

B clips, F frames a clip, H x W pixels, T = F / 2 time slots (1 for an image), N = T * H/16 * W/16 states, D width,
h heads of e = D / h channels, M tokens kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, apply_rot_embed_cat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa.encoders.vision import FrozenWhere
from jepa.errors import InputError, check_int

_PATCH, _HEAD = 16, 64  # of all published models
_SPAN = 15.0  # rows and columns lie at 0 to 15, whatever their number
_EPS = 1e-6
_ADDRESS = "https://dl.fbaipublicfiles.com/vjepa2/"
_KEYS = ("ema_encoder", "target_encoder")  # the teacher's weights, of distilled and of teacher models
LEVELS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}  # blocks, by depth


@dataclass(frozen=True)
class VJEPA21Sizes:
    """Width D, number of blocks and of heads, and width of the feed-forward layers.

    >>> VJEPA21Sizes(width=768, depth=12, heads=12, mlp=3072).levels
    (2, 5, 8, 11)
    """

    width: int
    depth: int
    heads: int
    mlp: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_int(name, value, 1)
        if self.depth not in LEVELS:
            raise InputError(f"depth must be one of {', '.join(map(str, LEVELS))}, got {self.depth}")
        head, rest = divmod(self.width, self.heads)
        if rest or head % 2 or head < 6:
            raise InputError(f"heads must give each an even width >= 6, got {self.heads} for width {self.width}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The blocks after which states can be had."""
        return LEVELS[self.depth]


PUBLISHED = {  # file and sizes by name
    "vjepa2_1_vit_base_384": ("vjepa2_1_vitb_dist_vitG_384.pt", VJEPA21Sizes(768, 12, 12, 3072)),
    "vjepa2_1_vit_large_384": ("vjepa2_1_vitl_dist_vitG_384.pt", VJEPA21Sizes(1024, 24, 16, 4096)),
    "vjepa2_1_vit_giant_384": ("vjepa2_1_vitg_384.pt", VJEPA21Sizes(1408, 40, 22, 6144)),
    "vjepa2_1_vit_gigantic_384": ("vjepa2_1_vitG_384.pt", VJEPA21Sizes(1664, 48, 26, 8192)),
}


class VJEPA21(FrozenWhere):
    """The encoder of V-JEPA 2.1, without its predictor, on clips and images of any size in multiples of 16 pixels.

    Attention spans the whole clip. A clip of one frame is an image and has a patch embedding of its own; a longer one
    has an even number of frames. Each level is the residual stream after one block (`LEVELS`), normalised by weights
    of its own. Blocks behind the last level asked for are not built.

    Args:
        pretrained: a name of `PUBLISHED`, which is downloaded once, or the path of such a file.
        architecture: without `pretrained`: the fields of `VJEPA21Sizes`; random weights.
        heads: of a file, whose tensors do not tell; None: heads of 64 channels, as all published models have.
        size: side in pixels of the frames that streams and clips are read at.
        levels: which of the four levels the states have, 0 to 3 in rising order, concatenated to len(levels) * D.
        frozen: no gradients, and evaluation mode for good.
        gradient_checkpointing: recompute activations in the backward pass.
        mean: of red, green and blue (0 to 1), by which pixels are normalised.
        std: likewise.

    Raises:
        InputError: the file cannot be had, is broken, or has other tensors (they are listed); or sizes do not fit.

    >>> tiny = {"width": 12, "depth": 12, "heads": 2, "mlp": 24}
    >>> encoder = VJEPA21(architecture=tiny, size=32, levels=(1, 3))
    >>> encoder(torch.zeros(1, 4, 32, 48, 3, dtype=torch.uint8)).shape  # 2 x 3 patches at 2 times, two levels
    torch.Size([1, 12, 24])
    """

    tubelet = 2
    takes_images = True

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: Mapping[str, int] | None = None,
        heads: int | None = None,
        size: int = 384,
        levels: Sequence[int] = (3,),
        frozen: bool = True,
        gradient_checkpointing: bool = False,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (architecture is None):
            raise InputError(f"give either pretrained or architecture, got {pretrained!r} and {architecture!r}")
        if architecture is not None and heads is not None:
            raise InputError(f"heads must be given with pretrained only, and else in architecture, got {heads}")
        if check_int("size", size, 2 * _PATCH) % _PATCH:
            raise InputError(f"size must be a multiple of {_PATCH}, got {size}")
        if not levels or list(levels) != sorted(set(levels) & set(range(4))):
            raise InputError(f"levels must be of 0, 1, 2, 3 in rising order, got {list(levels)}")
        self.size, self.levels, self.mean, self.std = size, list(levels), list(mean), list(std)
        self.gradient_checkpointing = gradient_checkpointing
        if pretrained is not None:
            tensors, self.sizes = _read(pretrained, heads)
            with torch.device("meta"):
                self._build()
            self.to_empty(device="cpu").load_state_dict({name: tensors[name] for name in self.state_dict()})
        else:
            self.sizes = _sizes(architecture or {})
            self._build()
        if frozen:
            self.freeze()

    def _build(self) -> None:
        """Modules under the names that the published tensors have."""
        sizes = self.sizes
        self.width = len(self.levels) * sizes.width
        self.patch_embed, self.patch_embed_img = (_PatchEmbedding(sizes.width, frames) for frames in (self.tubelet, 1))
        self.img_mod_embed, self.video_mod_embed = (nn.Parameter(1e-6 * torch.randn(1, 1, sizes.width)) for _ in "iv")
        self._levels = {sizes.levels[level]: str(level) for level in self.levels}  # by block
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(max(self._levels) + 1))
        self.norms_block = nn.ModuleDict({name: nn.LayerNorm(sizes.width, eps=_EPS) for name in self._levels.values()})

    def node(self) -> dict[str, object]:
        return super().node() | {"architecture": asdict(self.sizes), "size": self.size, "levels": self.levels}

    def forward(self, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, F, H, W, 3) uint8 -> states S_X (B, N, levels * D). With tokens `keep` (B, M): of these alone (B, M, .).

        Tokens are counted by time, then row, then column. Those that are not kept are not attended to.
        """
        return torch.cat(list(self.exits(frames, keep)), dim=-1)

    def exits(self, frames: Tensor, keep: Tensor | None = None) -> Iterator[Tensor]:
        """States (B, N, D) of one level after the other; blocks run only when the next level is asked for."""
        _check_frames(frames)
        image = frames.shape[1] == 1
        embed = self.patch_embed_img if image else self.patch_embed
        states = embed(self.pixels(frames)) + (self.img_mod_embed if image else self.video_mod_embed)
        slots = 1 if image else frames.shape[1] // self.tubelet
        grid = slots, *(side // _PATCH for side in frames.shape[2:4])
        angles = _angles(grid, self.sizes.width // self.sizes.heads, states)
        if keep is not None:
            states, angles = states.take_along_dim(keep[..., None], 1), angles[keep][:, None]
        for number, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                states = checkpoint(block, states, angles, use_reentrant=False)
            else:
                states = block(states, angles)
            if number in self._levels:
                yield self.norms_block[self._levels[number]](states)


class _PatchEmbedding(nn.Module):
    """The convolution `proj`, whose stride is its kernel, as a product: (B, F, H, W, 3) -> (B, N, D)."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        kernel = (frames, _PATCH, _PATCH)
        self.proj = nn.Conv3d(3, width, kernel, stride=kernel)

    def forward(self, pixels: Tensor) -> Tensor:
        width, _, *kernel = self.proj.weight.shape
        for axis in (3, 2, 1):
            pixels = pixels.unflatten(axis, (-1, kernel[axis - 1]))
        patches = pixels.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4).flatten(1, 3)
        return F.linear(patches, self.proj.weight.view(width, -1), self.proj.bias)


class _Block(nn.Module):
    """(B, N, D) and `angles` (N, 2e) or (B, 1, M, 2e) -> (B, N, D)."""

    def __init__(self, sizes: VJEPA21Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(sizes.width, eps=_EPS) for _ in "12")
        self.attn = _Attention(sizes.width, sizes.heads)
        self.mlp = Mlp(sizes.width, sizes.mlp)

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states), angles)
        return states + self.mlp(self.norm2(states))


class _Attention(nn.Module):
    """Of all tokens to all, queries and keys turned by their places in time, height and width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, states: Tensor, angles: Tensor) -> Tensor:
        qkv = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, h, N, e)
        query, key = apply_rot_embed_cat(qkv[:2], angles).to(qkv.dtype)
        return self.proj(F.scaled_dot_product_attention(query, key, qkv[2]).transpose(1, 2).flatten(2))


def _angles(grid: Sequence[int], channels: int, like: Tensor) -> Tensor:
    """Sines and cosines (N, 2e) of the angles by which pairs of adjacent channels turn.

    A third of the channels each, rounded down to pairs, turns with time, row and column; the rest does not.
    """
    pairs, kind = channels // 6, torch.promote_types(like.dtype, torch.float32)
    slots, *sides = grid
    time = torch.arange(slots, device=like.device, dtype=kind)
    row, column = (torch.linspace(0, _SPAN, side, device=like.device, dtype=kind) for side in sides)
    rates = 10_000 ** (-torch.arange(pairs, device=like.device, dtype=kind) / pairs)
    angles = (torch.cartesian_prod(time, row, column)[..., None] * rates).flatten(1)
    angles = F.pad(angles, (0, channels // 2 - 3 * pairs)).repeat_interleave(2, dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _check_frames(frames: Tensor) -> None:
    shape = tuple(frames.shape)
    if len(shape) != 5 or shape[4] != 3 or frames.dtype != torch.uint8:
        raise InputError(f"frames must be (B, F, H, W, 3) uint8, got {shape} {frames.dtype}")
    if shape[1] != 1 and (shape[1] % VJEPA21.tubelet or not shape[1]):
        raise InputError(f"the number of frames must be 1 or a multiple of {VJEPA21.tubelet}, got {shape[1]}")
    if any(side % _PATCH or side < 2 * _PATCH for side in shape[2:4]):  # one row has no place between 0 and 15
        raise InputError(f"height and width must be multiples of {_PATCH} from {2 * _PATCH} on, got {shape[2:4]}")


def _sizes(architecture: Mapping[str, int]) -> VJEPA21Sizes:
    try:
        return VJEPA21Sizes(**architecture)
    except TypeError:
        fields = ", ".join(VJEPA21Sizes.__dataclass_fields__)
        raise InputError(f"architecture must have {fields}, got {', '.join(architecture)}") from None


def _read(pretrained: str, heads: int | None) -> tuple[Mapping[str, Tensor], VJEPA21Sizes]:
    """The encoder's tensors in a published file, mapped into memory and all checked, and its sizes."""
    path = _download(pretrained) if pretrained in PUBLISHED else Path(pretrained)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise InputError(f"pretrained must be a file or of {', '.join(PUBLISHED)}, got {pretrained!r}") from None
    except Exception as error:  # torch raises whatever its reader of pickles stumbles over
        raise InputError(f"{path}: not a whole file of tensors: {shorten(str(error), 300)}") from error
    found = content if isinstance(content, dict) else {}
    found = {key: found[key] for key in _KEYS if isinstance(found.get(key), dict)}
    if len(found) != 1:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: must have one of {' and '.join(_KEYS)}, got {keys}")
    key, named = found.popitem()
    tensors = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in named.items()}
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    try:
        width, mlp = (len(tensors[name]) for name in ("patch_embed.proj.bias", "blocks.0.mlp.fc1.bias"))
        sizes = VJEPA21Sizes(width, depth, heads or max(1, width // _HEAD), mlp)
        with torch.device("meta"):
            whole = VJEPA21(architecture=asdict(sizes), levels=range(4))
        whole.load_state_dict(tensors, assign=True)
    except KeyError as error:
        raise InputError(f"{path}: {key} must be a V-JEPA 2.1, got no {error}") from None
    except (InputError, RuntimeError) as error:
        raise InputError(f"{path}: {key} must be a V-JEPA 2.1: {shorten(str(error), 500)}") from None
    if pretrained in PUBLISHED and sizes != PUBLISHED[pretrained][1]:
        raise InputError(f"{path}: {pretrained} must have {PUBLISHED[pretrained][1]}, got {sizes}")
    return tensors, sizes


def _download(name: str) -> Path:
    """The file of a published name, downloaded where it is not there yet. Two files' own names differ in case only."""
    file, path = PUBLISHED[name][0], Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(_ADDRESS + file, str(path))
        except (OSError, HTTPException, RuntimeError) as error:
            raise InputError(f"{name} cannot be downloaded from {_ADDRESS}{file}: {error}") from error
    return path
