"""What the passes of a model take: in closed form for the families that have one, otherwise measured once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from jepa.decoders.language import LanguageDecoder
from jepa.models.roles import YDecoder
from jepa.operations import FAMILIES, PartCount, count_flops, transformer_cache_bytes, transformer_flops, weight_bytes
from jepa.pretrained import extend
from jepa.selective import Decoded

Model = TypeVar("Model", bound=nn.Module)
P = ParamSpec("P")


def remembered(count: Callable[Concatenate[Model, P], int]) -> Callable[Concatenate[Model, P], int]:
    """A count that is made once for each model and arguments."""
    known: WeakKeyDictionary[nn.Module, dict[Any, int]] = WeakKeyDictionary()

    @wraps(count)
    def counted(model: Model, *args: P.args, **kwargs: P.kwargs) -> int:
        counts, key = known.setdefault(model, {}), (*args, *kwargs.items())
        if key not in counts:
            with torch.no_grad():
                counts[key] = count(model, *args, **kwargs)
        return counts[key]

    return counted


def pass_cost(lm: Any, tokens: int, context: int, logits: int = 0) -> PartCount:
    """What one pass of a causal language model over `tokens` tokens takes.

    They attend to `context` tokens: themselves and those of the key/value cache. The last `logits` of them get logits.
    """
    return PartCount(
        forward_passes=1,
        flops=pass_flops(lm, tokens, context, logits),
        weight_bytes=weight_bytes(lm),
        cache_bytes=lm.dtype.itemsize * _cached(lm, context - tokens),
    )


def answer_cost(lm: Any, prompt: int, tokens: int) -> PartCount:
    """What generating `tokens` tokens, >= 1, after `prompt` positions takes, alone: a pass for each token."""
    later = (pass_cost(lm, 1, prompt + i, 1) for i in range(1, tokens))
    return sum(later, start=pass_cost(lm, prompt, prompt, 1))


def text_cost(decoder: YDecoder, tokens: int) -> PartCount:
    """What a Y-Decoder's text of `tokens` tokens takes, generated alone."""
    if isinstance(decoder, LanguageDecoder):
        answer = answer_cost(decoder.lm, decoder.prefix, tokens)
        flops, cache = answer.flops + 2 * decoder.project.weight.numel(), answer.cache_bytes
    else:
        flops, cache = decoder.flops(tokens), decoder.cache_bytes(tokens)
    read = tokens * weight_bytes(decoder)
    return PartCount(forward_passes=tokens, flops=flops, weight_bytes=read, cache_bytes=cache)


@torch.no_grad()
def greedy_texts(
    decoder: YDecoder, latents: Tensor, detokenize: Callable[[list[list[int]]], list[str]], end: int
) -> list[Decoded]:
    """Greedy texts of embeddings (B, E) on the decoder's device; each token, the end included, is a forward pass."""
    rows = decoder.generate(latents, end)
    counts = [min(len(row) + 1, decoder.max_length) for row in rows]
    return [
        costed(text, count, text_cost(decoder, count)) for text, count in zip(detokenize(rows), counts, strict=True)
    ]


def costed(text: str, tokens: int, cost: PartCount) -> Decoded:
    """A text and what it took."""
    return Decoded(text, tokens, cost.forward_passes, cost.flops, cost.weight_bytes, cost.cache_bytes)


@remembered
def pass_flops(lm: Any, tokens: int, context: int, logits: int) -> int:
    """FLOPs of `pass_cost`, by the conventions of `count_flops`."""
    if _has_closed_form(lm) and not hasattr(lm, "peft_config"):
        return transformer_flops(lm.config, tokens, context=context, logits=logits).total
    ids, cache = torch.zeros((1, context), dtype=torch.long, device=lm.device), None
    if held := context - tokens:
        _, cache = extend(lm.get_decoder(), None, input_ids=ids[:, :held], use_cache=True)

    def run() -> None:
        out, _ = extend(lm.get_decoder(), cache, input_ids=ids[:, held:], use_cache=True)
        if logits:
            lm.get_output_embeddings()(out.last_hidden_state[:, -logits:])

    return count_flops(run).total


@remembered
def _cached(lm: Any, held: int) -> int:
    """Numbers in the key/value cache of one sequence of `held` tokens."""
    if held == 0:
        return 0
    if _has_closed_form(lm):
        return transformer_cache_bytes(lm.config, held, element_size=1)
    ids = torch.zeros((1, held), dtype=torch.long, device=lm.device)
    _, cache = extend(lm.get_decoder(), None, input_ids=ids, use_cache=True)
    kept = (tensor for layer in cache.layers for tensor in vars(layer).values())  # keys and values, or a running state
    return sum(tensor.numel() for tensor in kept if isinstance(tensor, Tensor) and tensor.is_floating_point())


def _has_closed_form(lm: Any) -> bool:
    return lm.config.get_text_config().model_type in FAMILIES
