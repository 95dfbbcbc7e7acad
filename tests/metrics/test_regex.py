"""Equality of regular expressions against strings counted out with `re`, laws of sets, and the real expressions."""

from __future__ import annotations

import itertools
import json
import re
import time

import pytest
from conftest import real_data, refusals
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.metrics.regex import UndecidedError, check_regex, equivalent

STRINGS = ["".join(letters) for n in range(5) for letters in itertools.product("abc", repeat=n)]

atoms = st.sampled_from(["a", "b", "ab", ".", "[ab]", "[a-c]", "[^a]", "()"])
repeats = st.sampled_from(["*", "+", "?", "{2}", "{0,1}", "{1,3}", "{2,}"])


def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = inner.map(lambda r: f"({r})")
    return st.one_of(
        st.tuples(groups, repeats).map("".join),
        st.tuples(groups, groups).map("".join),
        st.tuples(inner, inner).map("|".join),
    )


shared_with_re = st.recursive(atoms, grow, max_leaves=4)


def matched(pattern: str) -> set[str]:
    return {text for text in STRINGS if re.fullmatch(pattern, text, re.DOTALL)}


SHORT = "[a-c]{0,4}"  # all of STRINGS


@settings(max_examples=60)
@given(shared_with_re, shared_with_re)
def test_every_operator_agrees_with_re_on_all_short_strings(first, second):
    one, two = matched(first), matched(second)
    for pattern, strings in [
        (first, one),
        (f"({first})&({second})", one & two),
        (f"({first})|({second})", one | two),
        (f"~({first})", set(STRINGS) - one),
        (f"({first})&~({second})", one - two),
    ]:
        literal = "|".join(f"({text})" for text in sorted(strings)) or "(a&b)"
        assert equivalent(f"({pattern})&{SHORT}", literal), pattern


@settings(max_examples=60)
@given(shared_with_re, shared_with_re)
def test_equal_expressions_match_the_same_short_strings(first, second):
    if matched(first) != matched(second):
        assert not equivalent(first, second)
    assert equivalent(first, second) == equivalent(f"(({first})&~({second}))|(~({first})&({second}))", "a&b")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ab|cd", "(ab)|(cd)", True),  # a union binds loosest
        ("a|b&b", "a|(b&b)", True),
        ("ab&a.", "ab", True),
        ("~a*", "(~(a))*", True),  # a complement binds tightest
        ("~a*", "~(a*)", False),
        ("~~a", "a", True),
        ("a{3,}", "aaaa*", True),
        ("a{2,3}", "aa|aaa", True),
        ("(a?){3}", "a{0,3}", True),
        ("(a*b*)*", "[ab]*", True),
        (r"\bdog\b", "bdogb", True),  # the letter b, no word boundary
        (r"\bdog\b", "dog", False),
        (r"\d\.\*", "d[.][*]", True),
        ("^a$", r"\^a\$", True),  # no anchors
        ("[a-]", "a|-", True),
        ("[^a-y]&[a-z]", "z", True),
        ("[AEIOUaeiou]&[a-z]", "[aeiou]", True),
        ("[0-9]", "[0-8]", False),
        (".", "[a-z]|[^a-z]", True),
        (".", "[ -~]", False),  # the alphabet is all of Unicode
        (".*", "~([a-z]&[A-Z])", True),
        ("()", "~(..*)", True),
        ("(.*dog.*)&(.*truck.*)", "(.*dog.*truck.*)|(.*truck.*dog.*)", True),
        ("((dog)|(truck.*ring.*)){5,}", "((dog)|(truck.*ring.*)){4}((dog)|(truck.*ring.*))+", True),
        ("((dog)|(truck.*ring.*)){5,}", "((dog)|(truck.*ring.*)){6,}", False),
    ],
)
def test_known_cases(first, second, expected):
    assert equivalent(first, second) is expected
    assert equivalent(second, first) is expected


test_what_cannot_be_read_is_refused = refusals(
    ("", "have an operand, got its end at position 0"),
    ("(a", r"close a group with '\)', got its end at position 2"),
    ("a)", r"end after a complete expression, got '\)' at position 1"),
    ("a|", "have an operand, got its end at position 2"),
    ("*a", r"have an operand, got '\*' at position 0"),
    ("a||b", r"have an operand, got '\|' at position 2"),
    ("~", "have an operand, got its end"),
    ("a\\", r"have an operand, got '\\\\' at position 1"),
    ("a{", "have a repetition {n}, {n,} or {n,m}, got '{'"),
    ("a{2", "have a repetition"),
    ("a{,2}", "have a repetition"),
    ("a{3,2}", "repeat n to m times, n <= m <= 1000"),
    ("a{1001}", "repeat n to m times, n <= m <= 1000"),
    ("a{" + "9" * 900 + "}", "have a repetition"),
    ("[", r"close a class with '\]' after one character or more, got '\['"),
    ("[]", "close a class"),
    ("[a", "close a class"),
    ("[a\\]", "close a class"),
    ("[^]", "have a character in a class"),
    ("[z-a]", "ranges from low to high, got its end at position 5"),
    ("@", "have an operand, got '@'"),
    ("(" * 21 + "a" + ")" * 21, "nest at most 20 groups"),
    ("a" * 1001, "at most 1000 characters, got 1001"),
    of=check_regex,
)


def test_a_comparison_has_a_limit():
    with pytest.raises(UndecidedError):
        equivalent(".*a.{30}", "(.*a.{30})|(.*a.{30}b.*a.{30})")


def test_the_deepest_nesting_does_not_exhaust_the_stack():
    text = "a"
    for _ in range(18):
        text = f"~(a|b&.{text}c?){{2,}}d*"
    assert not equivalent(text, text + "z")


def test_every_expression_of_nlrx_is_read_and_decided():
    paths = [real_data(f"nlrx/synth_{split}.jsonl") for split in ("train", "test")]
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    golds = [json.loads(line)["messages"][2]["content"] for line in text.splitlines()]
    assert len(golds) == 10_000
    for gold in golds:
        check_regex(gold)
    start = time.process_time()
    for gold in golds[::20]:
        assert equivalent(
            gold, f"(({gold})&(.*a.*))|(({gold})&~(.*a.*))"
        )  # not the same description: states are visited
        assert not equivalent(gold, f"~({gold})")
    assert (time.process_time() - start) / 1000 < 0.02
