"""A byte-level BPE tokenizer trained in memory (Hugging Face tokenizers), and the padding that all tokenizers share."""

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
    """Texts to padded ids and back. Lower-cased, byte-level: every text has ids; none is unknown or a control token.

    >>> tokenizer = Tokenizer.train(["the red bar moves left"] * 2, vocab_size=300)
    >>> ids, mask = tokenizer.encode(["The red bar", "red"])
    >>> tokenizer.decode(ids.tolist())
    ['the red bar', 'red']
    """

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # `<eos>` within a text is plain text
        pad, eos = tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)
        if pad is None or eos is None:
            raise InputError(f"a tokenizer must have the tokens {PAD} and {EOS}")
        self.pad_id, self.eos_id = pad, eos

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """BPE merges of `texts`, see `train_bpe`."""
        return cls(train_bpe(texts, vocab_size, [PAD, EOS], lower=True))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], eos: bool = False) -> tuple[Tensor, Tensor]:
        """Right-padded `ids` (B, L) and `mask` (B, L), true at real tokens; `eos` appends the end token."""
        rows = [[*e.ids, self.eos_id] if eos else e.ids for e in self._tokenizer.encode_batch(list(texts))]
        return pad_rows(rows, self.pad_id)

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`encode` with the end token."""
        return self.encode(texts, eos=True)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of id rows; special tokens are dropped."""
        return [text.strip() for text in self._tokenizer.decode_batch([list(r) for r in rows])]

    def save(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / _FILE))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        path = folder / _FILE
        if not path.is_file():
            raise InputError(f"tokenizer not found: {path}")
        try:
            return cls(_Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{path}: not a tokenizer: {error}") from None


def train_bpe(texts: Iterable[str], vocab_size: int, special: list[str], lower: bool = False) -> _Tokenizer:
    """A byte-level BPE tokenizer; with `lower` it lower-cases texts and begins words with a space."""
    if vocab_size < (least := 256 + len(special)):
        parts = f"256 bytes and {len(special)} special tokens"
        raise InputError(f"vocab_size must be >= {least} ({parts}), got {vocab_size}")
    bpe = _Tokenizer(models.BPE())
    if lower:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lower)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of token ids as `ids` (B, L), padded on the right or on the `left`, and `mask` (B, L), true at real tokens.

    >>> ids, mask = pad_rows([[5, 6], [7]], pad_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])
    """
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    places = torch.arange(int(lengths.max()))
    mask = places >= len(places) - lengths if left else places < lengths
    ids = torch.full(mask.shape, pad_id, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids, mask
