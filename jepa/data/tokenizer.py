"""A byte-level BPE tokenizer trained in memory (Hugging Face tokenizers)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from jepa.errors import InputError

PAD, EOS = "<pad>", "<eos>"
_FILE = "tokenizer.json"


class Tokenizer:
    """Texts to padded ids and back. Lower-cased, byte-level: every text has ids, none is unknown."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        pad, eos = tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)
        if pad is None or eos is None:
            raise InputError(f"a tokenizer must have the tokens {PAD} and {EOS}")
        self.pad_id, self.eos_id = pad, eos

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """BPE merges of `texts`; raises `InputError` if `vocab_size` is below the 256 bytes and 2 special tokens."""
        if vocab_size < 258:
            raise InputError(f"vocab_size must be >= 258 (256 bytes and 2 special tokens), got {vocab_size}")
        tokenizer = _Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], eos: bool = False) -> tuple[Tensor, Tensor]:
        """Right-padded `ids` (B, L) and `mask` (B, L), true at real tokens; `eos` appends the end token."""
        rows = [[*e.ids, self.eos_id] if eos else e.ids for e in self._tokenizer.encode_batch(list(texts))]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) < lengths[:, None]

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`encode` with the end token."""
        return self.encode(texts, eos=True)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of id rows; special tokens are dropped."""
        return [text.strip() for text in self._tokenizer.decode_batch([list(r) for r in rows])]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` into the folder."""
        self._tokenizer.save(str(folder / _FILE))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Raises `InputError` if the file is missing or not a tokenizer."""
        path = folder / _FILE
        if not path.is_file():
            raise InputError(f"tokenizer not found: {path}")
        try:
            return cls(_Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{path}: not a tokenizer: {error}") from None
