"""Requests for regular expressions and their answers, from the grammar of NL-RX-SYNTH.

After Locascio et al. 2016 (arXiv 1608.03000), Table 1. An expression grows from production rules, each with a side in
regular expressions and a side in English. The finer points of the English ("lines not having a vowel") are read off the
published pairs; the grammar derives all 10,000 letter by letter. No terminal occurs twice in an expression, and the
quoted words come in a fixed order.

Rules are drawn at rates fitted to the published pairs: the fraction with each rule, terminal and depth is within 0.05
of theirs. As all prompts and expressions differ and short ones run out, 51 % have three rules (published: 42 %).

The same seed gives the same pairs on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from jepa.data.pairs import Example, ExampleSplits, split_pairs
from jepa.errors import InputError, check_int

SYSTEM_PROMPT = "Convert natural language to regular expression."
WORDS = ("dog", "truck", "ring", "lake")  # in the order in which an expression takes them
QUOTED = tuple(f"the string '{word}'" for word in WORDS)
TERMINALS = {  # English -> regular expression
    "a vowel": "[AEIOUaeiou]",
    "a number": "[0-9]",
    "a letter": "[A-Za-z]",
    "a capital letter": "[A-Z]",
    "a lower-case letter": "[a-z]",
    "a character": ".",
    **dict(zip(QUOTED, WORDS, strict=True)),
}
CLASSES = tuple(name for name in TERMINALS if name not in QUOTED)


@dataclass(frozen=True)
class Rule:
    """A production: `regex` and `english` with a slot {0}, {1}, … for each part and {n} for a count."""

    regex: str
    english: str
    weight: int  # its rate as the outermost rule
    inner: int  # its rate below another rule that allows it
    inside: tuple[str, ...] = ()  # the rules that its parts may have

    @property
    def arity(self) -> int:
        return sum(f"{{{slot}}}" in self.regex for slot in range(3))


_COMMON = ("followed", "start", "end", "times", "once", "zero", "or3", "and3", "only")
_REPEATED = ("followed", "or", "contain", "start", "end", "words")
_EDGE = ("followed", "or", "contain", "times", "once", "zero", "words", "only")

RULES = {
    "followed": Rule("{0}.*{1}.*", "{0} followed by {1}", 8, 88),
    "before": Rule("({0}).*({1}).*", "{0} before {1}", 300, 88, (*_COMMON, "not", "contain", "or", "and", "words")),
    "or": Rule("({0})|({1})", "{0} or {1}", 26, 88, (*_COMMON, "before", "not", "contain", "and")),
    "and": Rule("({0})&({1})", "{0} and {1}", 28, 82, (*_COMMON, "before", "not", "contain", "or")),
    "or3": Rule("({0})|({1})|({2})", "either {0}, {1}, or {2}", 0, 86),
    "and3": Rule("({0})&({1})&({2})", "{0}, {1}, and {2}", 0, 86),
    "not": Rule("~({0})", "not {0}", 116, 66, (*_COMMON, "before", "contain", "or", "and", "words")),
    "contain": Rule(".*{0}.*", "containing {0}", 96, 56, (*_COMMON, "before", "not", "or", "and", "words")),
    "start": Rule("({0})(.*)", "starting with {0}", 42, 36, _EDGE),
    "end": Rule("(.*)({0})", "ending with {0}", 54, 54, _EDGE),
    "words": Rule(r"\b{0}\b", "words with {0}", 160, 41, (*_COMMON, "before", "not", "contain", "or", "and")),
    "times": Rule("({0}){{{n},}}", "{0}, {n} or more times", 86, 78, _REPEATED),
    "once": Rule("({0})+", "{0} at least once", 38, 44, _REPEATED),
    "zero": Rule("({0})*", "{0}, zero or more times", 42, 42, _REPEATED),
    "only": Rule("{0}", "containing only {0}", 3, 28, ("before", "or", "and", "times", "once", "zero")),
}
_SIZES = {1: 5, 2: 66, 3: 29}  # weights of the number of rules; short expressions repeat and are then dropped
_WORD_RATE = 0.33  # of terminals that are quoted words
_COUNTS = range(2, 8)

# A second way to say each rule and terminal; one of several is drawn.
PARAPHRASES = {
    "followed": ("{0} then {1}", "{0} and later {1}", "{0} with {1} after it"),
    "before": ("{0} in front of {1}", "{0} ahead of {1}", "{0} preceding {1}"),
    "or": ("either {0} or {1}", "{0} or else {1}"),
    "and": ("both {0} and {1}", "{0} as well as {1}"),
    "or3": ("one of {0}, {1} and {2}", "any of {0}, {1} or {2}"),
    "and3": ("all of {0}, {1} and {2}", "{0} plus {1} plus {2}"),
    "not": ("anything but {0}", "no match of {0}"),
    "contain": ("{0} somewhere inside", "{0} in any place"),
    "start": ("{0} at the beginning", "{0} at the start"),
    "end": ("{0} at the end", "{0} at the very end"),
    "words": ("a word having {0}", "words using {0}"),
    "times": ("{n} or more of {0}", "at least {n} instances of {0}"),
    "once": ("one or more of {0}", "at least one instance of {0}"),
    "zero": ("zero or more of {0}", "any number of {0}"),
    "only": ("nothing but {0}", "exactly {0}"),
    "a vowel": ("a vowel", "any vowel"),
    "a number": ("a digit", "a numeral"),
    "a letter": ("a letter", "a letter of the alphabet"),
    "a capital letter": ("an upper-case letter", "a capital"),
    "a lower-case letter": ("a small letter", "a lowercase letter"),
    "a character": ("any character", "a single character"),
    **{quoted: (f"'{word}'", f"the word '{word}'") for quoted, word in zip(QUOTED, WORDS, strict=True)},
}
_OPENINGS = ("lines that have {0}", "find lines with {0}", "a line with {0}", "show each line that has {0}")


@dataclass(frozen=True)
class Expression:
    """A rule with its `parts`, or a terminal without; `count` is the number in "or more times".

    >>> expression = Expression("before", (Expression("a number"), Expression("a vowel")))
    >>> request(expression), regex(expression)
    ('lines with a number before a vowel', '([0-9]).*([AEIOUaeiou]).*')
    """

    rule: str
    parts: tuple[Expression, ...] = ()
    count: int = 0


def regex(expression: Expression) -> str:
    """The regular expression, with `&` for both and `~` for not, as NL-RX writes them."""
    if expression.rule in TERMINALS:
        return TERMINALS[expression.rule]
    return RULES[expression.rule].regex.format(*map(regex, expression.parts), n=expression.count)


def request(expression: Expression) -> str:
    """The English of NL-RX-SYNTH: `lines with a number before a vowel`."""
    english = _english(expression, negated=False)
    if english.startswith(("not a ", "not the ")):
        return "lines not having " + english.removeprefix("not ")
    if _first(expression).rule in ("or3", "and3") and not english.startswith("not "):
        return f"lines having {english}"
    if english.startswith(("not ", "containing ", "starting ", "ending ")):
        return f"lines {english}"
    for before, after in (("words with not a ", "words that don't have a "), ("words with not ", "words that don't ")):
        if english.startswith(before):
            return f"lines with {after}{english.removeprefix(before)}"
    return f"lines with {english}"


def rephrase(expression: Expression, rng: Random) -> str:
    """The same meaning in other words, one of several: `find lines with a digit in front of any vowel`."""
    return rng.choice(_OPENINGS).format(_other_words(expression, rng))


def sample(rng: Random) -> Expression:
    """A random expression of at most 3 rules."""
    size = rng.choices(list(_SIZES), list(_SIZES.values()))[0]
    return _grow(rng, size, {name: rule.weight for name, rule in RULES.items()}, _terminals(rng))


def generate(
    pairs: int,
    test_pairs: int,
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    phrasings: int = 1,
    system: bool = True,
) -> ExampleSplits:
    """Distinct expressions and their requests: `pairs` to train and validate on, `test_pairs` others to test on.

    With 2 `phrasings`, a `rephrase` of each expression is beside its request. The source of an example is
    `generated:17` or `generated:17:rephrased`. `system` adds NL-RX's system prompt. See `split_pairs`.
    """
    check_int("pairs", pairs, 1)
    check_int("test_pairs", test_pairs, 0)
    if phrasings not in (1, 2):
        raise InputError(f"phrasings must be 1 or 2, got {phrasings}")
    made, prompt = [], SYSTEM_PROMPT if system else None
    for index, (answer, *requests) in enumerate(_distinct(pairs + test_pairs, seed)):
        for text, mark in zip(requests[:phrasings], ("", ":rephrased"), strict=False):
            made.append(Example(text, answer, prompt, source=f"generated:{index}{mark}"))
    cut = pairs * phrasings
    return split_pairs(made[:cut], made[cut:], validation_fraction, seed, limit)


def _distinct(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """`count` times (expression, request, request in other words), no expression and no request twice."""
    rng, seen, found, misses = Random(seed), set[str](), 0, 0
    while found < count:
        expression = sample(rng)
        texts = regex(expression), request(expression), rephrase(expression, rng)
        if seen.isdisjoint(texts):
            seen.update(texts)
            found, misses = found + 1, 0
            yield texts
        elif (misses := misses + 1) == 1000:
            raise InputError(f"pairs + test_pairs must be within what the grammar yields (about {found}), got {count}")


def _english(expression: Expression, negated: bool) -> str:
    """Under a negation each part of a conjunction is negated anew, and an alternative has no "either"."""
    rule, parts = expression.rule, expression.parts
    if rule in TERMINALS:
        return rule
    texts = [_english(part, negated or rule == "not") for part in parts]
    if rule == "contain" and texts[0].startswith("not "):
        return "not containing " + texts[0].removeprefix("not ")
    if rule == "words" and texts[0].startswith("containing "):
        return "words that contain " + texts[0].removeprefix("containing ")
    english = RULES[rule].english
    if negated:
        english = english.removeprefix("either ")
        if rule in ("and", "and3"):
            english = english.replace(", {1}", ", not {1}").replace("and ", "and not ")
    return english.format(*texts, n=expression.count)


def _first(expression: Expression) -> Expression:
    """The innermost rule that the English begins with."""
    while expression.rule in ("before", "or", "and", "times", "once", "zero"):
        expression = expression.parts[0]
    return expression


def _other_words(expression: Expression, rng: Random) -> str:
    texts = [_other_words(part, rng) for part in expression.parts]
    return rng.choice(PARAPHRASES[expression.rule]).format(*texts, n=expression.count)


def _grow(rng: Random, size: int, weights: dict[str, int], terminals: Iterator[str]) -> Expression:
    """`size` rules, the outermost drawn by `weights`; `terminals` are taken from left to right."""
    if size == 0:
        return Expression(next(terminals))
    names = [name for name in weights if size == 1 or RULES[name].inside]
    name = rng.choices(names, [weights[name] for name in names])[0]
    arity = RULES[name].arity
    first = (size - 1 + rng.randrange(2)) // 2 if arity == 2 else size - 1  # two parts share evenly
    sizes = (first, size - 1 - first, 0)[:arity]
    inner = {inside: RULES[inside].inner for inside in RULES[name].inside}
    parts = tuple(_grow(rng, part, inner, terminals) for part in sizes)
    return Expression(name, parts, rng.choice(_COUNTS) if name == "times" else 0)


def _terminals(rng: Random) -> Iterator[str]:
    """Terminals without repetition: words in order, classes at random. There are enough for 3 rules."""
    words, classes = iter(QUOTED), iter(rng.sample(CLASSES, len(CLASSES)))
    while True:
        word = next(words, None) if rng.random() < _WORD_RATE else None
        yield word or next(classes)
