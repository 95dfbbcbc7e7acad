"""The tokenizer that a pretrained text model came with, in the form of `jepa.data.tokenizer.Tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers
from torch import Tensor

from jepa.data.tokenizer import pad_rows
from jepa.errors import InputError, check_int
from jepa.pretrained import load_tokenizer


class PretrainedTokenizer:
    """Texts to padded ids and back with the tokenizer of a pretrained name: see `jepa.pretrained.source`.

    A text may have `max_length` tokens, special ones included; None: the tokenizer's own limit. VL-JEPA has 512 for
    queries and targets (section 3.1).
    """

    def __init__(self, name: str, max_length: int | None = None) -> None:
        self.hf: transformers.PreTrainedTokenizerBase = load_tokenizer(name)
        if max_length is not None:
            self.hf.model_max_length = check_int("max_length", max_length, 1)  # saved with the tokenizer

    def save(self, folder: Path) -> None:
        self.hf.save_pretrained(folder)

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def max_length(self) -> int:
        return int(self.hf.model_max_length)

    @property
    def pad_id(self) -> int:
        """Padding; the first token where a tokenizer has none (Llama): the mask hides it."""
        return 0 if self.hf.pad_token_id is None else int(self.hf.pad_token_id)

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        if self.hf.eos_token_id is None:
            raise InputError("to end a text, a tokenizer must have an end-of-text token (eos_token), got none")
        return int(self.hf.eos_token_id)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Right-padded `ids` (B, L) and `mask` (B, L), true at real tokens, with the special tokens of the model."""
        return self._padded(texts, self._rows(texts, special=True))

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`encode` without special tokens but the end of text."""
        return self._padded(texts, [[*row, self.eos_id] for row in self._rows(texts, special=False)])

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of id rows; special tokens are dropped."""
        return [text.strip() for text in self.hf.batch_decode([list(row) for row in rows], skip_special_tokens=True)]

    def _rows(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        how = {
            "add_special_tokens": special,
            "split_special_tokens": True,
            "verbose": False,
        }  # within texts: plain text
        return self.hf(list(texts), **how)["input_ids"]

    def _padded(self, texts: Sequence[str], rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        text, longest = max(zip(texts, rows, strict=True), key=lambda pair: len(pair[1]))
        if len(longest) > self.max_length:
            shown = text if len(text) <= 60 else f"{text[:60]}…"
            raise InputError(f"a text must have at most {self.max_length} tokens, got {len(longest)}: {shown!r}")
        return pad_rows(rows, self.pad_id)
