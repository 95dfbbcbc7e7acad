"""The regex grammar: what it derives of NL-RX-SYNTH, how its pairs compare with it, splits and determinism."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from random import Random

import pytest
from conftest import real_data, refusals, refuses

from jepa.data.regex_grammar import (
    PARAPHRASES,
    RULES,
    SYSTEM_PROMPT,
    TERMINALS,
    Expression,
    generate,
    regex,
    rephrase,
    request,
    sample,
)

NAMES = {pattern: name for name, pattern in TERMINALS.items()}
# What stands around the parenthesised parts of a regular expression.
GLUE = {"@.*@.*": "before", "@|@": "or", "@&@": "and", "@|@|@": "or3", "@&@&@": "and3", "~@": "not"}
GLUE |= {"@@": "edge", "@+": "once", "@*": "zero"}


def unwrap(text: str) -> tuple[list[str], str]:
    """`(a)|((b)*)` -> ["a", "(b)*"], "@|@". Parts are not to be trusted unless the parentheses match."""
    parts, glue, depth, start = [], "", 0, 0
    for index, letter in enumerate(text):
        if letter == "(":
            depth += 1
            if depth == 1:
                start = index + 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start:index])
                glue += "@"
            elif depth < 0:
                return [], ""
        elif depth == 0:
            glue += letter
    return (parts, glue) if depth == 0 else ([], "")


@cache
def parse(text: str) -> tuple[Expression, ...]:
    """Every expression without `only` whose regular expression is `text`: an independent reading of the answers."""
    if text in NAMES:
        return (Expression(NAMES[text]),)
    parts, glue = unwrap(text)
    count = re.fullmatch(r"@\{(\d),\}", glue)
    readings: list[tuple[str, list[str]]] = []
    if count:
        readings.append(("times", parts))
    elif glue == "@@":
        readings += [("start", parts[:1])] if parts[1] == ".*" else []
        readings += [("end", parts[1:])] if parts[0] == ".*" else []
    elif glue in GLUE:
        readings.append((GLUE[glue], parts))
    if text.startswith(r"\b") and text.endswith(r"\b"):
        readings.append(("words", [text[2:-2]]))
    if len(text) > 4 and text.startswith(".*") and text.endswith(".*"):
        readings.append(("contain", [text[2:-2]]))
    for cut in re.finditer(r"(?=\.\*)", text.removesuffix(".*")):
        ends = [text[: cut.start()], text[cut.start() + 2 : -2]]
        if text.endswith(".*") and NAMES.keys() >= set(ends):
            readings.append(("followed", ends))
    return tuple(
        Expression(rule, chosen, int(count[1]) if count else 0)
        for rule, texts in readings
        for chosen in itertools.product(*map(parse, texts))
    )


def with_only(expression: Expression) -> Iterator[Expression]:
    """The expression, and with `only` (which leaves no trace in the regular expression) put in at one place."""
    yield expression
    yield Expression("only", (expression,))
    for index, part in enumerate(expression.parts):
        for changed in itertools.islice(with_only(part), 1, None):
            parts = (*expression.parts[:index], changed, *expression.parts[index + 1 :])
            yield Expression(expression.rule, parts, expression.count)


def derivation(text: str, answer: str) -> Expression | None:
    """The expression that has this request and this answer."""
    readings = (expression for parsed in parse(answer) for expression in with_only(parsed))
    return next((expression for expression in readings if request(expression) == text), None)


def depth(expression: Expression) -> int:
    return 1 + max(map(depth, expression.parts)) if expression.parts else 0


def names(expression: Expression) -> Iterator[str]:
    yield expression.rule
    for part in expression.parts:
        yield from names(part)


@pytest.fixture(scope="module")
def published() -> list[tuple[str, str]]:
    rows = [
        json.loads(line)["messages"]
        for split in ("train", "test")
        for line in real_data(f"nlrx/synth_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [(user["content"], assistant["content"]) for _, user, assistant in rows]


def test_every_published_pair_is_derived_letter_by_letter(published):
    underivable = [pair for pair in published if derivation(*pair) is None]
    assert len(published) == 10_000
    assert underivable == []


def test_generated_pairs_have_the_statistics_of_the_published(published):
    made = generate(9999, 1, 0.0, seed=3).train

    def statistics(pairs: list[tuple[str, str]]) -> tuple[dict[str, float], dict[str, float]]:
        expressions = [found for pair in pairs if (found := derivation(*pair))]
        used = Counter(name for expression in expressions for name in names(expression))
        depths = Counter(map(depth, expressions))
        count = len(expressions)
        assert count > 0.999 * len(pairs)
        fractions = {name: used[name] / count for name in (*RULES, *TERMINALS)}
        fractions |= {f"depth {level}": depths[level] / count for level in (1, 2, 3)}
        means = {
            "words of a request": sum(len(text.split()) for text, _ in pairs) / len(pairs),
            "letters of an answer": sum(len(answer) for _, answer in pairs) / len(pairs),
        }
        return fractions, means

    fractions, means = statistics([(pair.prompt, pair.completion) for pair in made])
    expected_fractions, expected_means = statistics(published)
    assert fractions == pytest.approx(expected_fractions, abs=0.05)
    assert means == pytest.approx(expected_means, rel=0.08)


VOWEL, NUMBER = Expression("a vowel"), Expression("a number")
WORDS = Expression("words", (Expression("contain", (Expression("not", (NUMBER,)),)),))
BOTH = Expression("not", (Expression("and", (VOWEL, NUMBER)),))
DOGS = Expression("times", (Expression("the string 'dog'"),), 3)


@pytest.mark.parametrize(
    ("expression", "english", "pattern"),
    [
        (Expression("not", (VOWEL,)), "lines not having a vowel", "~([AEIOUaeiou])"),
        (BOTH, "lines not having a vowel and not a number", "~(([AEIOUaeiou])&([0-9]))"),
        (WORDS, "lines with words that don't containing a number", r"\b.*~([0-9]).*\b"),
        (DOGS, "lines with the string 'dog', 3 or more times", "(dog){3,}"),
    ],
)
def test_the_two_sides_of_an_expression(expression, english, pattern):
    assert request(expression) == english
    assert regex(expression) == pattern
    assert rephrase(expression, Random(0)) != english


def test_an_expression_is_read_back_from_its_regular_expression():
    rng = Random(0)
    for _ in range(500):
        expression = sample(rng)
        assert derivation(request(expression), regex(expression)) is not None
        used = [name for name in names(expression) if name in TERMINALS]
        assert len(set(used)) == len(used)
        words = [name for name in used if "string" in name]
        assert words == [f"the string '{word}'" for word in ("dog", "truck", "ring", "lake")[: len(words)]]


def test_every_rule_and_terminal_has_paraphrases_with_the_same_slots():
    assert PARAPHRASES.keys() == RULES.keys() | TERMINALS.keys()
    for name, texts in PARAPHRASES.items():
        slots = set(re.findall(r"\{\w\}", RULES[name].english)) if name in RULES else set()
        assert len(set(texts)) == len(texts)
        assert all(set(re.findall(r"\{\w\}", text)) == slots for text in texts)


def test_splits_are_distinct_and_two_phrasings_are_held_out_together():
    one, two = (generate(900, 300, 0.1, seed=0, phrasings=phrasings) for phrasings in (1, 2))
    assert [len(part) for part in (one.train, one.validation, one.test)] == [810, 90, 300]
    every = one.train + one.validation + one.test
    assert len({pair.completion for pair in every}) == len({pair.prompt for pair in every}) == 1200
    assert not any(one.duplicates.values())
    assert {pair.system for pair in every} == {SYSTEM_PROMPT}
    for single, double in ((one.train, two.train), (one.validation, two.validation), (one.test, two.test)):
        assert double[::2] == single
        assert [pair.completion for pair in double[1::2]] == [pair.completion for pair in single]
        assert [pair.source for pair in double[1::2]] == [f"{pair.source}:rephrased" for pair in single]
        assert {pair.prompt for pair in double[1::2]}.isdisjoint(pair.prompt for pair in single)


def test_pairs_depend_on_the_seed_alone():
    splits = generate(300, 100, 0.1, seed=7, phrasings=2)
    assert splits == generate(300, 100, 0.1, seed=7, phrasings=2)
    assert splits != generate(300, 100, 0.1, seed=8, phrasings=2)
    text = "\n".join(f"{pair.prompt}\t{pair.completion}" for pair in splits.train + splits.validation + splits.test)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "bc23cd61b14f1478"


test_bad_numbers_are_refused = refusals(
    ({"pairs": 0}, "pairs"),
    ({"test_pairs": -1}, "test_pairs"),
    ({"phrasings": 3}, "phrasings"),
    ({"validation_fraction": 1.0}, "validation_fraction"),
    ({"limit": 19}, "limit"),
    of=lambda arguments: generate(
        **({"pairs": 20, "test_pairs": 5, "validation_fraction": 0.1, "seed": 0} | arguments)
    ),
)


def test_asking_for_more_than_the_grammar_has_is_refused(monkeypatch):
    monkeypatch.setattr("jepa.data.regex_grammar.sample", lambda rng: Expression("a vowel"))
    refuses(r"yields \(about 1\), got 12", generate, 10, 2, 0.1, seed=0)
