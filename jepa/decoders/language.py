"""Y-Decoder: a Hugging Face causal language model that continues an embedding.

B embeddings, E embedding dimensions, K prefix positions, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from jepa.decoders.prefix import until_end
from jepa.errors import InputError
from jepa.pretrained import as_architecture, extend, given, load, recompute_activations


class LanguageDecoder(nn.Module):
    """A causal language model that continues `prefix` input embeddings, a linear map of the embedding (ClipCap,
    arXiv 2111.09734); all of it is trained.

    `pretrained` is a hub name or a local folder. Without it, `architecture` configures a model of random weights.

    Raises:
        InputError: the model cannot be had, a tensor is missing or does not fit (they are listed), or a text has more
            tokens than `max_length`.

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
        self.lm: Any = load(transformers.AutoModelForCausalLM, pretrained, config)
        self.prefix, self.max_length, self.gradient_checkpointing = prefix, max_length, gradient_checkpointing
        self.project = nn.Linear(embedding_dim, prefix * config.hidden_size)
        if gradient_checkpointing:
            recompute_activations(self.lm)

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
        return until_end(self._passes(latents), self.max_length, eos_id)

    def _passes(self, latents: Tensor) -> Iterator[Tensor]:
        """The likeliest tokens (B,), pass by pass."""
        states, cache = self._prefix(latents), None
        while True:
            out, cache = extend(self.lm, cache, inputs_embeds=states, use_cache=True, logits_to_keep=1)
            chosen = out.logits[:, -1].argmax(-1)
            yield chosen
            states = self.lm.get_input_embeddings()(chosen)[:, None]

    def _prefix(self, latents: Tensor) -> Tensor:
        return self.project(latents).reshape(len(latents), self.prefix, -1)
