"""Latent predictor: the last layers of a language model with the causal mask off (VL-JEPA section 3.1).

B clips, N visual states, L query tokens, D_x and D widths, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.pretrained import as_architecture, given, load, recompute_activations

_LAYERS = {"full_attention", "sliding_attention"}  # the kinds that have a mask to take off


class LanguagePredictor(nn.Module):
    """(S_X, query) -> predicted embedding of the answer, by the last layers of a Hugging Face causal language model.

    The visual states, projected to the model's width, come first; the query follows as the model's own token embeddings
    (those of Gemma scaled, as it does). Positions count through both. Every token sees every real one: the causal mask
    is off, and layers with a sliding window, which keep the rotary base that they were trained with, see all as well.
    The output is the average over all real tokens after the model's last norm, a linear head, and unit norm.

    `forward` takes states (B, N, D_x), right-padded query tokens (B, L) and their mask, true at real ones; it returns
    (B, E) float32, L2-normalised.

    The model's last `layers` are taken; the others, and its output matrix, are not even read. `pretrained` is a hub
    name or a local folder; without it, `architecture` is the model's configuration, with random weights.

    Raises:
        InputError: the model cannot be had, misses a tensor, has fewer layers or does not name them `layers`, or keeps
            its tokens from seeing later ones (state spaces, linear attention).

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> predictor = LanguagePredictor(state_dim=24, embedding_dim=16, layers=1, architecture=tiny)
    >>> ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    >>> predictor(torch.zeros(2, 9, 24), ids, mask=ids > 0).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        state_dim: int,
        embedding_dim: int,
        layers: int,
        pretrained: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        frozen_embeddings: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = given(pretrained, architecture)
        skipped = config.num_hidden_layers - layers
        if layers < 1 or skipped < 0:
            raise InputError(f"layers must be between 1 and the model's {config.num_hidden_layers}, got {layers}")
        numbers = {rf"layers\.{i}\.": f"skipped.{i}." for i in range(skipped)}
        numbers |= {rf"layers\.{skipped + i}\.": f"layers.{i}." for i in range(layers if skipped else 0)}
        self.lm: Any = load(transformers.AutoModel, pretrained, _last_layers(config, layers), numbers)
        if not hasattr(self.lm, "layers"):  # whatever they are called, the patterns have not found the last ones
            raise InputError(f"{type(self.lm).__name__} cannot be a predictor: it must have its blocks in `layers`")
        width = config.hidden_size
        self.project = nn.Linear(state_dim, width)
        self.head = nn.Linear(width, embedding_dim)
        self.frozen_embeddings, self.gradient_checkpointing = frozen_embeddings, gradient_checkpointing
        self.lm.get_input_embeddings().requires_grad_(not frozen_embeddings)
        if gradient_checkpointing:
            recompute_activations(self.lm)
        self._check()

    @property
    def description(self) -> str:
        """For the table of parameters."""
        frozen = ", token embeddings frozen" if self.frozen_embeddings else ""
        config = self.lm.config
        return f"{type(self).__name__}: {config.num_hidden_layers} layers of {config.model_type}{frozen}"

    def node(self) -> dict[str, Any]:
        """The `_target_` node that builds it again, without a hub and with random weights."""
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "state_dim": self.project.in_features,
            "embedding_dim": self.head.out_features,
            "layers": self.lm.config.num_hidden_layers,
            "architecture": as_architecture(self.lm.config),
            "frozen_embeddings": self.frozen_embeddings,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.cat([self.project(states), self.lm.get_input_embeddings()(ids)], dim=1)
        real = torch.cat([mask.new_ones(states.shape[:2]), mask], dim=1)
        weight = real.to(tokens.dtype)[..., None]
        pooled = (self._states(tokens, real) * weight).sum(1) / weight.sum(1)
        return F.normalize(self.head(pooled).float(), dim=-1)

    def _states(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.lm(inputs_embeds=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state

    @torch.no_grad()
    def _check(self) -> None:
        """The first state has to depend on the last real token, and not on padding."""
        weight = self.project.weight
        if weight.is_meta:
            return
        training, refused = self.training, f"{type(self.lm).__name__} cannot be a predictor"
        self.eval()
        tokens, other = torch.randn(2, 4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
        tokens = tokens.repeat(3, 1, 1)
        tokens[1, 2] = other[2]  # the last real token
        tokens[2, 3] = other[3]  # padding
        try:
            whole, later, padded = self._states(tokens, torch.tensor([[True] * 3 + [False]] * 3))[:, 0]
        except Exception as reason:  # whatever a model does with arguments that it does not know
            raise InputError(f"{refused}: {' '.join(str(reason).split())}") from reason
        finally:
            self.train(training)
        if torch.equal(whole, later):
            raise InputError(f"{refused}: its tokens do not see later ones with the causal mask off")
        if not torch.allclose(whole, padded, atol=1e-5, rtol=1e-4):
            raise InputError(f"{refused}: its tokens see padding")


def _last_layers(config: transformers.PretrainedConfig, layers: int) -> transformers.PretrainedConfig:
    """The configuration of the last layers alone, bidirectional, no window narrower than the longest text."""
    config = deepcopy(config)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        if unknown := set(kinds) - _LAYERS:
            raise InputError(f"layer types must be of {', '.join(sorted(_LAYERS))}, got {', '.join(sorted(unknown))}")
        config.layer_types = kinds[-layers:]
    config.num_hidden_layers = layers
    config.is_causal = False  # the mask makers of `transformers` read it
    config.use_cache = False
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = 2 * config.max_position_embeddings
    return config
