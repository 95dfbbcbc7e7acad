"""Chat formatting: a request and its answer as token ids, whatever the tokenizer's template.

The template is the tokenizer's own (Hugging Face `apply_chat_template`). Three things are taken care of that published
training scripts get wrong: the end-of-turn token belongs to the answer even where it doubles as the padding token,
no template may stamp today's date on a prompt, and the prompt that is trained on is the one that is generated from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jepa.data.pairs import Example
from jepa.errors import InputError

PAD, END = "<|pad|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_PLAIN_TEMPLATE = (  # of a base model, which has none: roles in words, every turn closed by the end-of-text token
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_NO_CLOCK = "{%- macro strftime_now(format) %}{% endmacro -%}"  # put before a template, it hides the real clock
# The stamp of a template whose clock says nothing; a date in the user's words stays.
_STAMP = re.compile(r"^(Cutting Knowledge Date: .*\n)?(Today Date|Current date):[ \t]*\n", re.MULTILINE | re.IGNORECASE)


class ChatIds(NamedTuple):
    """Token ids of a pair. `prompt` + `completion` is what the language model reads and says.

    Args:
        prompt: system and user turn.
        completion: what follows it: the words that open the assistant's turn, the answer and its end-of-turn token.
        opening: how many of `completion` open the turn, and are given in generation.
        text: view 1 of the latent term on its own, without the system prompt.
        code: view 2 of the latent term on its own: its turn as `completion` has it.
    """

    prompt: list[int]
    completion: list[int]
    opening: int
    text: list[int]
    code: list[int]

    @property
    def given(self) -> list[int]:
        """What is given in generation: the prompt, and the words that open the turn."""
        return [*self.prompt, *self.completion[: self.opening]]


@dataclass(frozen=True)
class _Turn:
    """What the template puts around the assistant's words."""

    end_id: int
    starts_with_bos: bool


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template, and the [PRED] tokens of the latent predictor.

    Raises:
        InputError: the template does not continue its own prompt with the answer, or no token can end a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.hf = tokenizer
        if tokenizer.eos_token is None:
            raise InputError("a tokenizer must have an end-of-text token (eos_token), got none")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _PLAIN_TEMPLATE
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self._turn = self._probe()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
        """The built-in one: byte-level BPE merges of `texts`, trained in memory.

        Raises:
            InputError: `vocab_size` is below the 256 bytes and the 5 special tokens.
        """
        special = [PAD, END, *_ROLES]
        if vocab_size < 256 + len(special):
            raise InputError(
                f"vocab_size must be >= {256 + len(special)} (256 bytes and {len(special)} special tokens), "
                f"got {vocab_size}"
            )
        bpe = _Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, pad_token=PAD, eos_token=END, extra_special_tokens=list(_ROLES)
        )
        tokenizer.chat_template = _TEMPLATE
        return cls(tokenizer)

    @classmethod
    def pretrained(cls, name: str) -> ChatTokenizer:
        """From a hub name or a local folder; raises `InputError` if there is none."""
        try:
            return cls(AutoTokenizer.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise InputError(f"tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def save(self, folder: Path) -> None:
        self.hf.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        if not (folder / "tokenizer.json").is_file():
            raise InputError(f"tokenizer not found: {folder / 'tokenizer.json'}")
        return cls.pretrained(str(folder))

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def pad_id(self) -> int:
        return int(self.hf.pad_token_id)

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        return self._turn.end_id

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the end of turn, and the end of text."""
        return sorted({self._turn.end_id, int(self.hf.eos_token_id)})

    def add_predictors(self, count: int) -> list[int]:
        """The ids of [PRED] tokens 1 to `count` (LLM-JEPA section 3.1), added where they are missing."""
        names = [f"<|predictor_{i + 1}|>" for i in range(count)]
        if names:
            self.hf.add_tokens(names, special_tokens=True)
        return [self.hf.get_vocab()[name] for name in names]

    def encode(self, pairs: Sequence[Example]) -> list[ChatIds]:
        """Ids of each pair; an answer keeps its spelling but for white space at its ends."""
        rendered = [self._rendered(pair) for pair in pairs]
        prompts, openings, tails, texts, codes = (self._ids([r[part] for r in rendered]) for part in range(5))
        bos = [self.hf.bos_token_id] if self._turn.starts_with_bos else []
        encoded = []
        for prompt, opening, tail, text, code in zip(prompts, openings, tails, texts, codes, strict=True):
            encoded.append(
                ChatIds(prompt, opening + self._closed(tail), len(opening), text, bos + opening + self._closed(code))
            )
        return encoded

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded `ids` (B, L) and `mask` (B, L), true at real tokens."""
        length = max(map(len, rows))
        ids = torch.tensor([[self.pad_id] * (length - len(row)) + list(row) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) >= length - lengths[:, None]

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Right-padded `ids` (B, L) of bare texts with an end-of-turn token, and `mask` (B, L), true at real tokens."""
        rows = [[*ids, self.end_id] for ids in self._ids(list(texts))]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) < lengths[:, None]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of generated ids: up to the first stop token, without special tokens and white space at the ends."""
        stop = set(self.stop_ids)
        cut = [row[: next((i for i, token in enumerate(row) if token in stop), len(row))] for row in map(list, rows)]
        return [text.strip() for text in self.hf.batch_decode(cut, skip_special_tokens=True)]

    def _rendered(self, pair: Example) -> tuple[str, str, str, str, str]:
        """Prompt, opening, answer to the end, text view, code view (from the answer's first character on)."""
        system = [] if pair.system is None else [{"role": "system", "content": pair.system}]
        user = {"role": "user", "content": pair.prompt}
        prompt, opening, tail = self._continuation([*system, user], pair.completion.strip())
        text = prompt if pair.text is None and not system else self._render([self._user(pair.text or pair.prompt)])
        code = tail if pair.code is None else self._continuation([*system, user], pair.code.strip())[2]
        return prompt, opening, tail, text, code

    @staticmethod
    def _user(content: str) -> dict[str, str]:
        return {"role": "user", "content": content}

    def _continuation(self, messages: list[dict[str, str]], answer: str) -> tuple[str, str, str]:
        context = self._render(messages)
        prompt = self._render(messages, add_generation_prompt=True)
        full = self._render([*messages, {"role": "assistant", "content": answer}])
        if not prompt.startswith(context) or not full.startswith(prompt):
            raise InputError(
                "the chat template must continue its prompt with the answer, got "
                f"prompt {prompt[-60:]!r} and conversation {full[-120:]!r}"
            )
        return context, prompt[len(context) :], full[len(prompt) :]

    def _render(self, messages: list[dict[str, str]], **arguments: Any) -> str:
        def render(messages: list[dict[str, str]]) -> str:
            text = self.hf.apply_chat_template(
                messages,
                chat_template=_NO_CLOCK + self.hf.get_chat_template(),
                tokenize=False,
                enable_thinking=False,
                date_string="",
                **arguments,
            )
            return _STAMP.sub("", str(text))

        try:
            return render(messages)
        except Exception as error:
            if messages[0]["role"] != "system":
                raise InputError(f"the chat template fails on a plain conversation: {error}") from error
        first, second, *rest = messages  # a template without a system role: its words come before the user's
        return render([self._user(f"{first['content']}\n\n{second['content']}"), *rest])

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: dict[str, list[int]] = {text: [] for text in texts if text}
        if found:
            rows = self.hf(list(found), add_special_tokens=False)["input_ids"]
            found = dict(zip(found, rows, strict=True))
        return [found[text] if text else [] for text in texts]

    def _closed(self, tail: list[int]) -> list[int]:
        """The tail up to its end-of-turn token; the token is added where the template leaves it out."""
        end = self._turn.end_id
        return tail[: len(tail) - tail[::-1].index(end)] if end in tail else [*tail, end]

    def _probe(self) -> _Turn:
        """Finds the token that ends the assistant's turn: the first special one after the answer's words."""
        context, _, tail = self._continuation([self._user("a")], "b")
        after = self._ids([tail.partition("b")[2]])[0]
        special = set(self.hf.all_special_ids) | set(getattr(self.hf, "added_tokens_decoder", {}))
        end = next((token for token in after if token in special), int(self.hf.eos_token_id))
        first = self._ids([context])[0]
        bos = self.hf.bos_token_id
        return _Turn(int(end), bos is not None and bool(first) and first[0] == bos)
