"""X-Encoder: V-JEPA 2 (arXiv 2506.09985) through `transformers`.

B clips, F frames a clip, S pixels a side, N states, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from jepa.encoders.vision import FrozenWhere, check_frames
from jepa.errors import InputError
from jepa.pretrained import as_architecture, given, load, recompute_activations


class VJEPA2(FrozenWhere):
    """The encoder of V-JEPA 2; its predictor is neither built nor read. VL-JEPA has ViT-L, frozen (section 3.1).

    Attention spans the whole clip, so that a window is encoded as a whole: N = F / tubelet * (S / patch)². A still
    picture is a clip of one frame repeated.

    Args:
        pretrained: a hub name or a local folder, of V-JEPA 2 or of a classifier made from it.
        architecture: without `pretrained`: `model_type: vjepa2` and what differs from its defaults; random weights.
        frozen: no gradients, and evaluation mode for good.
        gradient_checkpointing: recompute activations in the backward pass.
        mean: of red, green and blue (0 to 1), and
        std: their spread, by which pixels are normalised: those of ImageNet, as V-JEPA 2 was trained.

    Raises:
        InputError: the model cannot be had or is no V-JEPA 2; a tensor of the encoder is missing or does not fit (they
            are listed); the heads are too narrow for its positions in three dimensions.
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
            raise InputError(
                f"a head must have >= 6 dimensions to know its place in time, height and width, got "
                f"{config.hidden_size} for {config.num_attention_heads} heads"
            )
        self.model: Any = load(_Encoder, pretrained, config)
        self.size, self.tubelet, self.width = config.crop_size, config.tubelet_size, config.hidden_size
        self.mean, self.std = list(mean), list(std)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_activations(self.model)
        if frozen:
            self.freeze()

    def node(self) -> dict[str, Any]:
        """The `_target_` node that builds it again, without a hub and with random weights."""
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "architecture": as_architecture(self.model.config),
            "frozen": self.frozen,
            "gradient_checkpointing": self.gradient_checkpointing,
            "mean": self.mean,
            "std": self.std,
        }

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, S, S, 3) uint8 -> states S_X (B, N, D)."""
        check_frames(frames, self.size, self.tubelet)
        mean, std = (frames.new_tensor(values, dtype=torch.float32) for values in (self.mean, self.std))
        pixels = (frames / 255 - mean) / std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model.encoder(pixel_values_videos=pixels.permute(0, 1, 4, 2, 3)).last_hidden_state


class _Encoder(VJEPA2PreTrainedModel):
    """`transformers`' own encoder as a model that can be loaded by itself."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__(config)
        self.encoder = VJEPA2Encoder(config)
        self.post_init()

    @classmethod
    def from_config(cls, config: VJEPA2Config, **arguments: Any) -> _Encoder:
        return cls._from_config(config, **arguments)
