"""X-Encoder: V-JEPA 2 (arXiv 2506.09985) through `transformers`.

B clips, F frames a clip, S pixels a side, N states, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import VJEPA2Config, VJEPA2PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from jepa.encoders.vision import FrozenWhere, check_frames
from jepa.errors import InputError
from jepa.pretrained import as_architecture, given, load, recompute_activations


class VJEPA2(FrozenWhere):
    """The encoder of V-JEPA 2, without its predictor. VL-JEPA has ViT-L, frozen (section 3.1).

    Attention spans the whole clip: N = F / tubelet * (S / patch)². A still picture is a clip of one frame repeated.

    Args:
        pretrained: a hub name or a local folder, of V-JEPA 2 or of a classifier made from it.
        architecture: without `pretrained`: `model_type: vjepa2` and what differs from its defaults; random weights.
        frozen: no gradients, and evaluation mode for good.
        gradient_checkpointing: recompute activations in the backward pass.
        mean: of red, green and blue (0 to 1), by which pixels are normalised.
        std: likewise.

    Raises:
        InputError: the model cannot be had or is no V-JEPA 2; tensors that are missing or do not fit are listed.

    >>> import torch
    >>> tiny = {"model_type": "vjepa2", "crop_size": 32, "hidden_size": 24, "num_attention_heads": 2}
    >>> encoder = VJEPA2(architecture={**tiny, "num_hidden_layers": 1})
    >>> encoder(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)).shape  # 2 x 2 patches at 2 times
    torch.Size([1, 8, 24])
    """

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        frozen: bool = True,
        gradient_checkpointing: bool = False,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        super().__init__()
        config = given(pretrained, architecture)
        if not isinstance(config, VJEPA2Config):
            raise InputError(f"the model must be of type vjepa2, got {config.model_type}")
        if config.hidden_size // config.num_attention_heads < 6:
            sizes = f"{config.hidden_size} for {config.num_attention_heads} heads"
            raise InputError(f"a head must have >= 6 dimensions for its place in time, height and width, got {sizes}")
        self.model: Any = load(_Encoder, pretrained, config)
        self.size, self.tubelet, self.width = config.crop_size, config.tubelet_size, config.hidden_size
        self.mean, self.std = list(mean), list(std)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_activations(self.model)
        if frozen:
            self.freeze()

    def node(self) -> dict[str, object]:
        return super().node() | {"architecture": as_architecture(self.model.config)}

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, S, S, 3) uint8 -> states S_X (B, N, D)."""
        check_frames(frames, self.size, self.tubelet)
        pixels = self.pixels(frames).permute(0, 1, 4, 2, 3)
        return self.model.encoder(pixel_values_videos=pixels).last_hidden_state


class _Encoder(VJEPA2PreTrainedModel):
    """`transformers`' own encoder as a model that can be loaded by itself."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__(config)
        self.encoder = VJEPA2Encoder(config)
        self.post_init()

    @classmethod
    def from_config(cls, config: VJEPA2Config, dtype: Any, **_: object) -> _Encoder:
        return cls._from_config(config, dtype=dtype)
