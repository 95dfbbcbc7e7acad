"""Chat formatting, with the templates of real model families on small tokenizers that need no download."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime

import pytest
from conftest import refuses
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from jepa.data.chat import ChatTokenizer
from jepa.data.packing import IGNORE, Layout, pack
from jepa.data.pairs import Example
from jepa.data.tokenizer import train_bpe

PAIRS = [
    Example("lines with a digit", ".*[0-9].*", None),
    Example("lines with 'dog' before a vowel", "(dog.*[AEIOUaeiou]).*", "You write regular expressions."),
]

# Shortened to the turns that are used here; what they write around a turn is what the families' own templates write.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
QWEN = """{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
GPT_OSS = """{%- macro system_message() %}
{{- "You are a large language model.\nCurrent date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
{%- endmacro %}
{{- "<|start|>system<|message|>" + system_message() + "<|end|>" }}
{%- for message in messages %}
    {%- set role = "developer" if message.role == "system" else message.role %}
    {{- "<|start|>" + role + "<|message|>" + message.content + ("<|return|>" if role == "assistant" else "<|end|>") }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{% endif %}"""
OLMO = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' %}
    {{- '<|assistant|>\n' + message['content'] + (eos_token if loop.last else eos_token + '\n') }}
{%- else %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}
{%- endfor %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }}
{%- else %}{{ ' ' + message['content'] + eos_token }}{% endif %}
{%- endfor %}"""

# template, end of turn, end of text, begin of text, padding, other special tokens
FAMILIES = {
    "llama": (LLAMA, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", "<|pad|>", ["<|start_header_id|>"]),
    "gemma": (GEMMA, "<end_of_turn>", "<eos>", "<bos>", "<pad>", ["<start_of_turn>"]),
    "qwen": (QWEN, "<|im_end|>", "<|im_end|>", None, "<|endoftext|>", ["<|im_start|>", "<think>", "</think>"]),
    "gpt_oss": (GPT_OSS, "<|return|>", "<|return|>", None, "<|pad|>", ["<|start|>", "<|message|>", "<|end|>"]),
    "olmo": (OLMO, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|pad|>", []),
    "mistral": (MISTRAL, "</s>", "</s>", "<s>", None, ["[INST]", "[/INST]"]),
    "base": (None, "<|endoftext|>", "<|endoftext|>", None, None, []),
}


def family(name: str, **changed: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the template and special tokens of a family."""
    template, end, eos, bos, pad, others = FAMILIES[name]
    special = [token for token in dict.fromkeys([pad, end, eos, bos, *others]) if token is not None]
    bpe = train_bpe(["lines with a dog before a digit"] * 3, 300, special)
    named = {"eos_token": eos, "bos_token": bos, "pad_token": pad, **changed}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        extra_special_tokens=[token for token in special if token not in named.values()],
        **{key: token for key, token in named.items() if token is not None},
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(params=FAMILIES)
def any_family(request) -> tuple[str, ChatTokenizer]:
    return request.param, ChatTokenizer(family(request.param))


class Clock:
    """A `datetime` of a fixed day, as `strftime_now` of the chat templates reads it."""

    def __init__(self, year: int) -> None:
        self.moment = datetime(year, 7, 26)

    def now(self) -> datetime:
        return self.moment


def undated(text: str) -> str:
    return re.sub(r"Cutting Knowledge Date: December 2023\nToday Date: \n|Current date: [-0-9]*\n", "", text)


def render(tokenizer: ChatTokenizer, ids: list[int]) -> str:
    return tokenizer.hf.decode(ids, skip_special_tokens=False)


def test_the_end_of_turn_is_trained_where_padding_is_the_same_token():
    for name in ("llama", "qwen", "olmo", "base"):
        tokenizer = ChatTokenizer(family(name, pad_token=FAMILIES[name][2]))
        assert tokenizer.pad_id == tokenizer.hf.eos_token_id
        rows = pack(tokenizer.encode(PAIRS), Layout(row_tokens=1000, rows="separate"))
        trained = [row[row != IGNORE].tolist() for row in rows.labels]
        assert trained == [pair.completion[pair.opening :] for pair in tokenizer.encode(PAIRS)]
        assert all(row[-1] == tokenizer.pad_id for row in trained)


def test_the_published_rows_are_those_written_out_by_hand():
    """Three rows, and two of which the second has both views up to the states read; the padding is an end of turn."""
    tokenizer = ChatTokenizer(family("qwen", pad_token="<|im_end|>"))
    one, two = (f"<|predictor_{i}|>" for i in (1, 2))
    layout = Layout(100, tuple(tokenizer.add_predictors(2)), "turn", view="alone", train_on="published")
    layout = replace(layout, rows="separate", pad_id=tokenizer.pad_id)
    said = "<|im_start|>assistant\n<think>\n\n</think>\n\nb b"
    whole = f"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na dog?<|im_end|>\n{said}<|im_end|>\n"
    views = [f"<|im_start|>user\na dog?{two}{one}", said]
    encoded = tokenizer.encode([Example("a dog?", "b b", "s")])
    ends = [len(ids) - 1 for ids in tokenizer.hf(views)["input_ids"]]
    for rows, second in (("separate", [f"{v}<|im_end|>\n" for v in views]), ("two", ["".join(views)])):
        found = pack(encoded, replace(layout, rows=rows), encoded, [0])
        ids, width = tokenizer.hf([whole, *second])["input_ids"], found.ids.shape[1]
        assert [row[place >= 0].tolist() for row, place in zip(found.ids, found.segments, strict=True)] == ids
        trained = [IGNORE if token == tokenizer.pad_id else token for token in ids[0][1:]]
        assert found.labels[0].tolist() == trained + [IGNORE] * (width - len(trained))
        assert trained.count(IGNORE) == 3
        assert (found.labels[1:] == IGNORE).all()
        assert found.predicted.tolist() == [width + ends[0]]
        assert found.target.tolist() == [2 * width + ends[1] if rows == "separate" else width + sum(ends) + 1]
    assert render(tokenizer, encoded[0].given) == whole.partition("b b")[0]  # generation sees no [PRED]


def test_words_and_their_closing_are_the_users_turn(any_family):
    """With [PRED] between them they are the turn that the template writes around words and [PRED] in one."""
    _, tokenizer = any_family
    [predictor] = tokenizer.add_predictors(1)
    [plain] = tokenizer.encode([Example("a dog.", "b", None)])
    turn = tokenizer.hf.decode(plain.text).replace("a dog.", "a dog.<|predictor_1|>")
    assert [*plain.words, predictor, *plain.closing] == tokenizer.hf(turn, add_special_tokens=False)["input_ids"]


def test_control_tokens_in_words_are_plain_text(any_family):
    """An answer that speaks of them is learnt and given back whole, and its turns are those of any other words."""
    _, tokenizer = any_family
    tokenizer.add_predictors(1)
    special = set(tokenizer.hf.all_special_ids)
    [plain] = tokenizer.encode([Example("say", "x", "s", "t", "c")])
    for token in tokenizer.hf.all_special_tokens:
        example = Example(f"say {token}", f"x{token}{token} z", f"s{token}", f"t{token}", f"{token} c")
        [ids] = tokenizer.encode([example])
        answer = ids.completion[ids.opening :]
        assert answer[-1] == tokenizer.end_id
        assert tokenizer.decode([answer]) == [example.completion]
        for part in ("prompt", "completion", "text", "code"):
            assert [i for i in getattr(ids, part) if i in special] == [i for i in getattr(plain, part) if i in special]
        closed, _ = tokenizer.encode_closed([example.completion])
        assert tokenizer.decode(closed.tolist()) == [example.completion]


def test_prompt_and_answer_are_the_conversation_of_the_template(any_family):
    """But for the stamp of the date, and for what follows the end of the answer's turn."""
    name, tokenizer = any_family
    last = tokenizer.hf.convert_tokens_to_ids(FAMILIES[name][1])
    assert last in tokenizer.stop_ids
    for pair, ids in zip(PAIRS, tokenizer.encode(PAIRS), strict=True):
        assert ids.completion[-1] == ids.code[-1] == last
        assert ids.completion.count(last) == 1
        system = [] if pair.system is None else [{"role": "system", "content": pair.system}]
        user = {"role": "user", "content": pair.prompt}
        if name == "gemma" and system:
            system, user = [], {"role": "user", "content": f"{pair.system}\n\n{pair.prompt}"}
        answer = {"role": "assistant", "content": pair.completion}
        expected = undated(tokenizer.hf.apply_chat_template([*system, user, answer], tokenize=False, date_string=""))
        end = FAMILIES[name][1]
        assert render(tokenizer, [*ids.prompt, *ids.completion, *ids.after]) == expected
        assert render(tokenizer, ids.prompt + ids.completion) == expected[: expected.rindex(end) + len(end)]


def test_the_prompt_generated_from_is_the_prompt_trained_on(any_family):
    """What is given in generation is what the template gives, and a prefix of what is trained on."""
    _, tokenizer = any_family
    for pair, ids in zip(PAIRS, tokenizer.encode(PAIRS), strict=True):
        [unanswered] = tokenizer.encode([Example(pair.prompt, "", pair.system)])
        given = unanswered.prompt + unanswered.completion[: unanswered.opening]
        assert given == ids.prompt + ids.completion[: ids.opening]
        rest = ids.completion[ids.opening :]
        assert tokenizer.decode([rest]) == [pair.completion]
        if pair.system is None:
            options = {"add_generation_prompt": True, "enable_thinking": False, "date_string": ""}
            turns = [{"role": "user", "content": pair.prompt}]
            written = tokenizer.hf.apply_chat_template(turns, tokenize=False, **options)
            assert render(tokenizer, given) == undated(written)


@pytest.mark.parametrize(("name", "stamp"), [("llama", "Today Date: 26 Jul {}"), ("gpt_oss", "Current date: {}-07-26")])
def test_prompts_carry_no_date(monkeypatch, name, stamp):
    found = []
    for year in (2024, 2031):
        monkeypatch.setattr(chat_template_utils, "datetime", Clock(year))
        stamped = family(name).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert stamp.format(year) in stamped  # the clock is the one that templates see
        tokenizer = ChatTokenizer(family(name))
        found.append(tokenizer.encode(PAIRS))
        for pair in found[-1]:
            for ids in (pair.prompt, pair.completion, pair.text, pair.code):
                assert "date" not in render(tokenizer, ids).lower()
    assert found[0] == found[1]


def test_a_date_of_the_users_own_stays():
    tokenizer = ChatTokenizer(family("llama"))
    for line in ("Today Date: 5 May 1990", "Current date: 2020-01-01", "Cutting Knowledge Date: June"):
        [ids] = tokenizer.encode([Example(f"{line}\nwhat day is it?", f"{line}\nand that is all", None)])
        assert line in render(tokenizer, ids.prompt)
        assert line in render(tokenizer, ids.completion)


def test_a_template_without_a_system_role_takes_its_words_before_the_users():
    tokenizer = ChatTokenizer(family("gemma"))
    [ids] = tokenizer.encode(PAIRS[1:])
    turn, pair = "<bos><start_of_turn>user\n{}<end_of_turn>\n", PAIRS[1]
    assert render(tokenizer, ids.prompt) == turn.format(f"{pair.system}\n\n{pair.prompt}")
    assert render(tokenizer, ids.text) == turn.format(pair.prompt)


def test_a_thinking_model_is_asked_not_to_think():
    tokenizer = ChatTokenizer(family("qwen"))
    [ids] = tokenizer.encode(PAIRS[:1])
    assert render(tokenizer, ids.completion[: ids.opening]) == "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render(tokenizer, ids.completion[ids.opening :]) == f"{PAIRS[0].completion}<|im_end|>"


def test_views_stand_alone(any_family):
    """View 1 without the system prompt, view 2 as in the conversation; both begin as a text does."""
    _, tokenizer = any_family
    plain, with_system = tokenizer.encode(PAIRS)
    assert plain.text == plain.prompt
    [without] = tokenizer.encode([Example(PAIRS[1].prompt, PAIRS[1].completion, None)])
    assert with_system.text == without.prompt
    bos = tokenizer.hf.bos_token_id
    begin = [] if bos is None else [bos]
    assert with_system.code == begin + with_system.completion
    assert plain.text[: len(begin)] == begin
    [other] = tokenizer.encode([Example("a", "b", None, text="the text", code="the code")])
    assert "the text" in render(tokenizer, other.text)
    assert tokenizer.decode([other.code[len(begin) + other.opening :]]) == ["the code"]
    assert tokenizer.decode([other.completion[other.opening :]]) == ["b"]


@pytest.mark.parametrize("end", ["<|b_end|>", ""])
def test_the_end_of_turn_is_found_whatever_its_name_or_added_where_it_is_missing(end):
    tokenizer = family("base")
    if end:
        tokenizer.add_tokens([end], special_tokens=True)
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{{{{ m.role + ':' + m.content }}}}{end}{{% endfor %}}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    [ids] = ChatTokenizer(tokenizer).encode(PAIRS[:1])
    expected = tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id
    assert ids.completion[-1] == expected
    assert ids.completion.count(expected) == 1


def test_padding_is_on_the_left_and_decoding_stops_at_the_end(chat_tokenizer):
    padded, mask = chat_tokenizer.pad([[7, 8, 9], [5]])
    pad = chat_tokenizer.pad_id
    assert padded.tolist() == [[7, 8, 9], [pad, pad, 5]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    [ids] = chat_tokenizer.encode(PAIRS[:1])
    said = ids.completion[ids.opening :]
    answer = PAIRS[0].completion
    rows = [said + said, said[:-1], [], [chat_tokenizer.pad_id, *said]]
    assert chat_tokenizer.decode(rows) == [answer, answer, "", answer]


@pytest.mark.parametrize("name", [*FAMILIES, "built-in"])
def test_predictor_tokens_are_added_once_and_saving_keeps_every_id(name, tmp_path, pairs):
    built_in = [text for pair in pairs for text in (pair.prompt, pair.completion)]
    tokenizer = ChatTokenizer.train(built_in, 400) if name == "built-in" else ChatTokenizer(family(name))
    before, encoded = len(tokenizer), tokenizer.encode(PAIRS)
    assert tokenizer.add_predictors(0) == []
    assert len(tokenizer) == before
    three = tokenizer.add_predictors(3)
    assert tokenizer.add_predictors(2) == three[:2]
    assert len(set(three)) == 3
    assert len(tokenizer) == before + 3
    assert tokenizer.decode([[three[0], *encoded[0].completion[encoded[0].opening :]]]) == [PAIRS[0].completion]
    tokenizer.save(tmp_path)
    again = ChatTokenizer.load(tmp_path)
    assert again.encode(PAIRS) == tokenizer.encode(PAIRS) == encoded
    assert again.add_predictors(3) == three
    assert (len(again), again.pad_id, again.stop_ids) == (len(tokenizer), tokenizer.pad_id, tokenizer.stop_ids)


def test_the_built_in_tokenizer_reads_any_text_and_gives_it_back(pairs, chat_tokenizer):
    assert len(chat_tokenizer) <= 400
    odd = [Example("naïve ☃ 'x'", "\\b(é|ü)+~", None), *pairs]
    for pair, ids in zip(odd, chat_tokenizer.encode(odd), strict=True):
        assert render(chat_tokenizer, ids.prompt) == f"<|user|>{pair.prompt}<|end|>"
        assert render(chat_tokenizer, ids.completion) == f"<|assistant|>{pair.completion}<|end|>"
        assert ids.opening == 1
    again = ChatTokenizer.train([text for pair in pairs for text in (pair.prompt, pair.completion)], 400)
    assert again.encode(odd) == chat_tokenizer.encode(odd)


def test_bad_tokenizers_are_named(tmp_path):
    refuses(r"vocab_size must be >= 261 .*, got 260", ChatTokenizer.train, ["a"], 260)
    refuses(r"tokenizer not found: .*tokenizer.json", ChatTokenizer.load, tmp_path)
    refuses(r"tokenizer .* cannot be loaded", lambda: ChatTokenizer.pretrained(str(tmp_path)))
    tokenizer = family("base")
    counted = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    for template, rule in (("{{ raise_exception('no') }}", "plain conversation: no"), (counted, "got prompt '1a'")):
        tokenizer.chat_template = template
        refuses(rule, ChatTokenizer, tokenizer)
    tokenizer.eos_token = None
    refuses("must have an end-of-text token", ChatTokenizer, tokenizer)
