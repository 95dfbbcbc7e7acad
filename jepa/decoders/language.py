"""Y-Decoder: a Hugging Face causal language model that continues an embedding.

B embeddings, E embedding dimensions, K prefix positions, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from jepa.errors import InputError
from jepa.operations import count_flops, from_hf_config, transformer_cache_bytes, transformer_flops
from jepa.pretrained import as_architecture, extend, given, load, recompute_activations


class LanguageDecoder(nn.Module):
    """A causal language model that continues `prefix` input embeddings, a linear map of the embedding (ClipCap,
    arXiv 2111.09734); all of it is trained.

    `forward` gives the logits of known texts; `generate` decodes greedily with a key/value cache. What a text takes is
    known in closed form for the families of `jepa.operations.FAMILIES`; with any other, a text is generated once for
    each length and counted.

    Args:
        embedding_dim: E.
        prefix: K.
        max_length: the most tokens of a text.
        pretrained: a hub name or a local folder.
        architecture: without `pretrained`: the model's configuration, whose weights are then random.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        InputError: the model cannot be had; a tensor is missing or does not fit (they are listed); it has an operation
            that `count_flops` cannot count; or a text is longer than `max_length`.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> decoder = LanguageDecoder(embedding_dim=16, architecture=tiny)
    >>> decoder(torch.zeros(2, 16), torch.tensor([[5, 6, 1], [7, 1, 1]])).shape  # logits
    torch.Size([2, 3, 64])
    """

    def __init__(
        self,
        embedding_dim: int,
        prefix: int = 2,
        max_length: int = 32,
        pretrained: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = given(pretrained, architecture)
        config.use_cache = False  # generation asks for its cache itself
        self.lm: Any = load(AutoModelForCausalLM, pretrained, config)
        self.prefix, self.max_length, self.gradient_checkpointing = prefix, max_length, gradient_checkpointing
        self.project = nn.Linear(embedding_dim, prefix * config.hidden_size)
        self._has_closed_form = _has_closed_form(config)
        self._counts: dict[tuple[int, torch.dtype], tuple[int, int]] = {}  # FLOPs and cache bytes: see `_counted`
        if gradient_checkpointing:
            recompute_activations(self.lm)
        if not self._has_closed_form and not self.project.weight.is_meta:
            self._counted(1)  # what cannot be counted is refused here, not after training

    @property
    def description(self) -> str:
        """For the table of parameters."""
        return f"{type(self).__name__}: {self.lm.config.model_type}"

    def node(self) -> dict[str, Any]:
        """The `_target_` node that builds it again, without a hub and with random weights."""
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "embedding_dim": self.project.in_features,
            "prefix": self.prefix,
            "max_length": self.max_length,
            "architecture": as_architecture(self.lm.config),
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def forward(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each token of `ids` (B, L), given the embedding (B, E) and the tokens before it."""
        length = ids.shape[1]
        if length > self.max_length:
            raise InputError(f"a text must have at most {self.max_length} tokens, got {length}")
        tokens = torch.cat([self._prefix(latents), self.lm.get_input_embeddings()(ids[:, :-1])], dim=1)
        return self.lm(inputs_embeds=tokens, use_cache=False, logits_to_keep=length).logits.float()

    @torch.no_grad()
    def generate(self, latents: Tensor, eos_id: int) -> list[list[int]]:
        """Greedy tokens of each embedding (B, E), the end token left out; a text stops at `max_length` tokens."""
        tokens = latents.new_full((len(latents), self.max_length), eos_id, dtype=torch.long)
        ended = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        for step, (chosen, _) in zip(range(self.max_length), self._passes(latents), strict=False):
            tokens[:, step] = torch.where(ended, eos_id, chosen)
            ended |= chosen == eos_id
            if bool(ended.all()):
                break
        return [row[: row.index(eos_id)] if eos_id in row else row for row in tokens.tolist()]

    def flops(self, tokens: int) -> int:
        """FLOPs of generating a text of `tokens` tokens alone, by the conventions of `jepa.operations.count_flops`."""
        if not self._has_closed_form:
            return self._counted(tokens)[0]
        config, prefix = self.lm.config, self.prefix
        first = transformer_flops(config, prefix, logits=1).total
        later = (transformer_flops(config, 1, context=prefix + step).total for step in range(1, tokens))
        return 2 * self.project.weight.numel() + first + sum(later)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of cached keys and values read while a text of `tokens` tokens is generated alone."""
        if not self._has_closed_form:
            return self._counted(tokens)[1]
        size = self.project.weight.element_size()
        held = (self.prefix + step for step in range(tokens - 1))  # the first token finds nothing cached
        return sum(transformer_cache_bytes(self.lm.config, count, element_size=size) for count in held)

    def _passes(self, latents: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """Greedy tokens (B,) of embeddings (B, E) and the key/value cache after their pass, pass by pass, endlessly."""
        states, cache = self._prefix(latents), None
        while True:
            out, cache = extend(self.lm, cache, inputs_embeds=states, use_cache=True, logits_to_keep=1)
            chosen = out.logits[:, -1].argmax(-1)
            yield chosen, cache
            states = self.lm.get_input_embeddings()(chosen)[:, None]

    @torch.no_grad()
    def _counted(self, tokens: int) -> tuple[int, int]:
        """`flops` and `cache_bytes` of a text that is generated for it."""
        weight = self.project.weight
        key = tokens, weight.dtype
        if key not in self._counts:
            blank = weight.new_zeros(1, self.project.in_features)

            def run() -> list[int]:
                passes = zip(range(tokens), self._passes(blank), strict=False)
                return [_bytes_held(cache) for _, (_, cache) in passes]

            counted = count_flops(run)
            self._counts[key] = counted.total, sum(counted.result[:-1])  # nothing reads what the last pass adds
        return self._counts[key]

    def _prefix(self, latents: Tensor) -> Tensor:
        return self.project(latents).reshape(len(latents), self.prefix, -1)


def _has_closed_form(config: PretrainedConfig) -> bool:
    try:
        from_hf_config(config)
    except InputError:  # a family that it does not know
        return False
    return True


def _bytes_held(cache: Any) -> int:
    held = (tensor for layer in cache.layers for tensor in vars(layer).values())  # keys and values, or a running state
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor) and tensor.is_floating_point())
