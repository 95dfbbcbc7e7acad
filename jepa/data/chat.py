"""Chat formatting: a prompt and its completion as token ids, by the tokenizer's own template (`apply_chat_template`).

The end-of-turn token belongs to the answer even where it doubles as the padding token. No template stamps today's date
on a prompt. Generation starts from the prompt that was trained on. A control token in the words is plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from torch import Tensor

from jepa.data.pairs import Example
from jepa.data.tokenizer import pad_rows, train_bpe
from jepa.errors import InputError
from jepa.pretrained import load_tokenizer

PAD, END = "<|pad|>", "<|end|>"
_CUT = "\ufdd0"  # no character; put into words where they must not become a control token
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# For a base model, which has no template: roles in words, and the end-of-text token after every turn.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_NO_CLOCK = "{%- macro strftime_now(format) %}{% endmacro -%}"  # put before a template, it hides the real clock
# The stamp of a template whose clock says nothing; a date in the user's words stays.
_STAMP = re.compile(r"^(Cutting Knowledge Date: .*\n)?(Today Date|Current date):[ \t]*\n", re.MULTILINE | re.IGNORECASE)


class ChatIds(NamedTuple):
    """Token ids of an example. The language model reads `prompt` and says `completion`."""

    prompt: list[int]  # system and user turn
    completion: list[int]  # the words that open the assistant's turn, the answer and its end-of-turn token
    opening: int  # how many tokens of `completion` open the turn; generation is given them
    text: list[int]  # view 1 of the latent term on its own, without the system prompt
    code: list[int]  # view 2 of the latent term on its own, in an assistant's turn
    words: Sequence[int] = ()  # `text` up to the end of the user's turn
    closing: Sequence[int] = ()  # what ends the user's turn
    after: Sequence[int] = ()  # what the template writes after the end of turn of `completion`

    @property
    def given(self) -> list[int]:
        """The tokens that generation starts from: the prompt, and the words that open the turn."""
        return [*self.prompt, *self.completion[: self.opening]]


class ChatTokenizer:
    """A Hugging Face tokenizer `hf` with its chat template, whose turns `end_id` ends, and [PRED] tokens.

    >>> tokenizer = ChatTokenizer.train(["lines with a digit"], vocab_size=300)
    >>> [ids] = tokenizer.encode([Example("a digit", "[0-9]", system=None)])
    >>> tokenizer.hf.decode(ids.prompt + ids.completion)
    '<|user|>a digit<|end|><|assistant|>[0-9]<|end|>'
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.hf = tokenizer
        if tokenizer.eos_token is None:
            raise InputError("a tokenizer must have an end-of-text token (eos_token), got none")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _PLAIN_TEMPLATE
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.end_id, self._begin, self._closing = self._probe()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
        """The built-in tokenizer: byte-level BPE merges of `texts`, see `train_bpe`."""
        bpe = train_bpe(texts, vocab_size, [PAD, END, *_ROLES])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=bpe, pad_token=PAD, eos_token=END, extra_special_tokens=list(_ROLES)
        )
        tokenizer.chat_template = _TEMPLATE
        return cls(tokenizer)

    @classmethod
    def pretrained(cls, name: str) -> ChatTokenizer:
        """From a pretrained name: see `jepa.pretrained.source`."""
        return cls(load_tokenizer(name))

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
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the end of turn, and the end of text."""
        return sorted({self.end_id, int(self.hf.eos_token_id)})

    def add_predictors(self, count: int) -> list[int]:
        """The ids of [PRED] tokens 1 to `count` (LLM-JEPA section 3.1), added where they are missing."""
        names = [f"<|predictor_{i + 1}|>" for i in range(count)]
        if names:
            self.hf.add_tokens(names, special_tokens=True)
        return [self.hf.get_vocab()[name] for name in names]

    def encode(self, examples: Sequence[Example]) -> list[ChatIds]:
        """Ids of each example; white space at the ends of a completion is dropped.

        Raises:
            InputError: words hold a control token, and the tokenizer has no other ids for them.
        """
        control = self._control()
        rendered = [self._rendered(_plain(example, control)) for example in examples]
        found, [closing] = list[ChatIds](), self._ids([self._closing])
        parts = (self._ids([r[part] for r in rendered]) for part in range(6))
        for prompt, opening, tail, text, code, words in zip(*parts, strict=True):
            said, code = self._closed(tail), self._begin + opening + self._closed(code)
            after = tail[len(said) :]
            found.append(ChatIds(prompt, opening + said, len(opening), text, code, words, closing, after))
        return found

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded `ids` (B, L) and `mask` (B, L), true at real tokens."""
        return pad_rows(rows, self.pad_id, left=True)

    def encode_closed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Right-padded `ids` (B, L) of bare texts with an end-of-turn token, and `mask` (B, L), true at real tokens."""
        control = self._control()
        return pad_rows(
            [[*ids, self.end_id] for ids in self._ids([_cut(text, control) for text in texts])], self.pad_id
        )

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of generated ids: up to the first stop token, without special tokens and white space at the ends."""
        stop = set(self.stop_ids)
        cut = [row[: next((i for i, token in enumerate(row) if token in stop), len(row))] for row in map(list, rows)]
        return [text.strip() for text in self.hf.batch_decode(cut, skip_special_tokens=True)]

    def _rendered(self, example: Example) -> tuple[str, str, str, str, str, str]:
        """Prompt, opening, answer to the end, text view, code view (from the answer's first character on), words."""
        system = [] if example.system is None else [{"role": "system", "content": example.system}]
        turns = [*system, _user(example.prompt)]
        prompt, opening, tail = self._continuation(turns, example.completion.strip())
        alone = example.text is None and not system
        text = prompt if alone else self._render([_user(example.text or example.prompt)])
        code = tail if example.code is None else self._continuation(turns, example.code.strip())[2]
        return prompt, opening, tail, text, code, text.removesuffix(self._closing)

    def _continuation(self, messages: list[dict[str, str]], answer: str) -> tuple[str, str, str]:
        context = self._render(messages)
        prompt = self._render(messages, add_generation_prompt=True)
        full = self._render([*messages, {"role": "assistant", "content": answer}])
        if not prompt.startswith(context) or not full.startswith(prompt):
            got = f"prompt {prompt[-60:]!r} and conversation {full[-120:]!r}"
            raise InputError(f"the chat template must continue its prompt with the answer, got {got}")
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
        return render([_user(f"{first['content']}\n\n{second['content']}"), *rest])

    def _control(self) -> re.Pattern[str]:
        """Any special token, longest first."""
        added = self.hf.added_tokens_decoder.values()
        special = {*self.hf.all_special_tokens, *(token.content for token in added if token.special)}
        return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        pieces = {text: text.split(_CUT) for text in texts}
        distinct = list(dict.fromkeys(filter(None, chain.from_iterable(pieces.values()))))
        rows = self.hf(distinct, add_special_tokens=False)["input_ids"] if distinct else []
        found = dict(zip(distinct, rows, strict=True)) | {"": []}
        ids = {text: [token for piece in parts for token in found[piece]] for text, parts in pieces.items()}
        for text, parts in pieces.items():
            if len(parts) > 1 and self.hf.decode(ids[text]) != (words := "".join(parts)):
                raise InputError(f"words must hold no control token of this tokenizer, got one in {words[:200]!r}")
        return [ids[text] for text in texts]

    def _closed(self, tail: list[int]) -> list[int]:
        """The tail up to its end-of-turn token; the token is added where the template leaves it out."""
        end = self.end_id
        return tail[: len(tail) - tail[::-1].index(end)] if end in tail else [*tail, end]

    def _probe(self) -> tuple[int, list[int], str]:
        """The token that ends a turn (the first special one after the answer), the tokens that open a text, and what
        ends a user's turn, whatever its words.
        """
        context, _, tail = self._continuation([_user("a")], "b")
        after = self._ids([tail.partition("b")[2]])[0]
        special = set(self.hf.all_special_ids) | set(getattr(self.hf, "added_tokens_decoder", {}))
        end = next((token for token in after if token in special), int(self.hf.eos_token_id))
        first = self._ids([context])[0][:1]
        closing = self._render([_user("words")]).rpartition("words")[2]
        return int(end), first if first == [self.hf.bos_token_id] else [], closing


def _plain(example: Example, control: re.Pattern[str]) -> Example:
    """The example with its control tokens cut in two."""
    words = {
        name: value for name in ("prompt", "completion", "system", "text", "code") if (value := getattr(example, name))
    }
    if not any(control.search(text) for text in words.values()):
        return example
    return replace(example, **{name: _cut(text, control) for name, text in words.items()})


def _cut(text: str, control: re.Pattern[str]) -> str:
    return control.sub(lambda token: f"{token[0][0]}{_CUT}{token[0][1:]}", text)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
