"""Whether two regular expressions in the language of NL-RX describe the same strings.

Locascio et al. 2016 (arXiv 1608.03000) compare expressions as automata with the Java library dk.brics.automaton, and
its syntax is followed here, loosest first:

    r|s  union      r&s  intersection      rs  one after the other
    r*  r+  r?  r{n}  r{n,}  r{n,m}  repetition      ~r  complement (binds tighter than repetition: ~r* is (~r)*)
    (r)  group      ()  the empty string      .  any character      [a-z_]  [^a-z_]  one of, none of
    \\c  the character c as it is, for any c

So ``\\b`` is the letter b and no word boundary, as in the published figures; ``^``, ``$`` and spaces stand for
themselves. The alphabet is all of Unicode, the line break included: what ``.`` matches and ``~`` complements over.

Where we differ from dk.brics: an operator where an operand is due (``*a``, ``a||b``) is an error, there it is a
character; its ``#``, ``@``, ``"..."`` and ``<...>``, which NL-RX does not use, are errors unless escaped; so are ranges
that run backwards, groups more than 20 deep, bounds above 1,000 and expressions longer than 1,000 characters.

Method: the states of both automata are derivatives of the expressions (Brzozowski 1964; Owens, Reppy & Turon 2009,
"Regular-expression derivatives re-examined", which also gives the classes of characters), made as a breadth-first
search for a string that tells the two apart needs them. The search can stop at any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from jepa.errors import InputError

_LONGEST = 1000  # characters of an expression
_DEEPEST = 20  # groups within each other
_LARGEST_BOUND = 1000  # in {n,m}
_MOST_LANGUAGES = 20_000  # made in one comparison; those of NL-RX need a few dozen
_LAST = "\U0010ffff"
_REPETITION = re.compile(r"[*+?]|\{(?P<low>[0-9]{1,4})(?P<comma>,(?P<high>[0-9]{1,4})?)?\}")
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_CHARACTER = re.compile(r'\\.|[^|&*+?{)#@"<\\]', re.DOTALL)
_CLASS = re.compile(r"\[((?:\\.|[^\]\\])+)\]", re.DOTALL)
_MEMBER = re.compile(r"(\\.|[^\\])(?:-(\\.|[^\\]))?", re.DOTALL)  # a character or a range of a class

Ranges = tuple[tuple[str, str], ...]  # first and last character of each


class UndecidedError(Exception):
    """The comparison needs more states than are allowed."""


@lru_cache(maxsize=65536)
def equivalent(first: str, second: str) -> bool:
    """Whether two expressions match the same strings, in the syntax at the head of this module, else `InputError`.

    Raises `UndecidedError` if the automata grow beyond 20,000 states in all before an answer is found.

    >>> equivalent("(.)*dog.*", ".*dog.*"), equivalent(".*dog", ".*dog.*")
    (True, False)
    """
    languages = _Languages()
    start = (_Parser(first, languages).parse(), _Parser(second, languages).parse())
    letters = languages.letters()
    seen, queue = {start}, [start]
    for left, right in queue:  # the queue grows meanwhile
        if left == right:
            continue
        if languages.has_empty[left] != languages.has_empty[right]:
            return False
        for letter in letters:
            pair = (languages.derive(left, letter), languages.derive(right, letter))
            if pair not in seen:
                seen.add(pair)
                queue.append(pair)
    return True


def check_regex(text: str) -> None:
    """Raises `InputError` for an expression outside the syntax at the head of this module."""
    _Parser(text, _Languages()).parse()


class _Languages:
    """Languages as numbers: equal descriptions (up to order and repetition in a union or intersection) are one."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, Any], int] = {}
        self._nodes: list[tuple[str, Any]] = []
        self._derivatives: dict[tuple[int, str], int] = {}
        self.has_empty: list[bool] = []  # whether the empty string belongs to a language
        self.nothing = self.characters(())
        self.empty = self._number("concat", (), True)
        self.any_character = self.characters((("\0", _LAST),))
        self.everything = self.repeat(self.any_character, 0, None)

    def _number(self, kind: str, content: Any, has_empty: bool) -> int:
        node = (kind, content)
        if node not in self._numbers:
            if len(self._nodes) == _MOST_LANGUAGES:
                raise UndecidedError
            self._numbers[node] = len(self._nodes)
            self._nodes.append(node)
            self.has_empty.append(has_empty)
        return self._numbers[node]

    def characters(self, ranges: Ranges) -> int:
        return self._number("characters", ranges, False)

    def concat(self, parts: Iterable[int]) -> int:
        flat: list[int] = []
        for part in parts:
            if part == self.nothing:
                return self.nothing
            kind, content = self._nodes[part]
            flat.extend(content if kind == "concat" else [part])
        if len(flat) == 1:
            return flat[0]
        return self._number("concat", tuple(flat), all(self.has_empty[part] for part in flat))

    def repeat(self, part: int, low: int, high: int | None) -> int:
        if high == 0 or part == self.empty:
            return self.empty
        if (low, high) == (1, 1):
            return part
        if self.has_empty[part]:
            low = 0
        return self._number("repeat", (part, low, high), low == 0)

    def union(self, parts: Iterable[int]) -> int:
        return self._combine("union", parts, self.nothing, self.everything)

    def intersection(self, parts: Iterable[int]) -> int:
        return self._combine("intersection", parts, self.everything, self.nothing)

    def _combine(self, kind: str, parts: Iterable[int], neutral: int, dominant: int) -> int:
        flat = self._members(kind, parts) - {neutral}
        if dominant in flat:
            return dominant
        if len(flat) < 2:
            return flat.pop() if flat else neutral
        has_empty = [self.has_empty[part] for part in flat]
        return self._number(kind, frozenset(flat), any(has_empty) if kind == "union" else all(has_empty))

    def complement(self, part: int) -> int:
        if part in (self.nothing, self.everything):
            return self.everything if part == self.nothing else self.nothing
        kind, content = self._nodes[part]
        return content if kind == "complement" else self._number("complement", part, not self.has_empty[part])

    def _members(self, kind: str, parts: Iterable[int]) -> set[int]:
        flat: set[int] = set()
        for part in parts:
            flat.update(self._nodes[part][1] if self._nodes[part][0] == kind else {part})
        return flat

    def letters(self) -> list[str]:
        """One character of each class of characters that no set tells apart."""
        sets = [content for kind, content in self._nodes if kind == "characters"]
        firsts = {"\0"} | {first for ranges in sets for first, _ in ranges}
        firsts |= {chr(ord(last) + 1) for ranges in sets for _, last in ranges if last != _LAST}
        classes = {tuple(_within(letter, ranges) for ranges in sets): letter for letter in sorted(firsts)}
        return list(classes.values())

    def derive(self, language: int, letter: str) -> int:
        """What may follow `letter` in a string of the language."""
        key = (language, letter)
        if key not in self._derivatives:
            self._derivatives[key] = self._derive(*self._nodes[language], letter)
        return self._derivatives[key]

    def _derive(self, kind: str, content: Any, letter: str) -> int:
        if kind == "characters":
            return self.empty if _within(letter, content) else self.nothing
        if kind == "complement":
            return self.complement(self.derive(content, letter))
        if kind == "union":
            return self.union([self.derive(part, letter) for part in content])
        if kind == "intersection":
            return self.intersection([self.derive(part, letter) for part in content])
        if kind == "repeat":
            part, low, high = content
            rest = self.repeat(part, max(low - 1, 0), None if high is None else high - 1)
            return self._before(self.derive(part, letter), [rest])
        ends = []  # of a concatenation: the letter begins its first part, or a later one if all before may be empty
        for index, part in enumerate(content):
            ends.append(self._before(self.derive(part, letter), content[index + 1 :]))
            if not self.has_empty[part]:
                break
        return self.union(ends)

    def _before(self, head: int, tail: Iterable[int]) -> int:
        """`concat`, spread over the members of a union: so equal languages more often have equal descriptions."""
        return self.union([self.concat([part, *tail]) for part in self._members("union", [head])])


def _within(letter: str, ranges: Ranges) -> bool:
    return any(first <= letter <= last for first, last in ranges)


class _Parser:
    """Recursive descent over the grammar at the head of this module."""

    def __init__(self, text: str, languages: _Languages) -> None:
        if len(text) > _LONGEST:
            raise InputError(f"a regex must have at most {_LONGEST} characters, got {len(text)}: {text[:40]!r}...")
        self.text, self.languages = text, languages
        self.at = self.depth = 0  # characters read, groups open

    def parse(self) -> int:
        language = self._union()
        if self.at < len(self.text):
            raise self._error("end after a complete expression")
        return language

    def _error(self, rule: str) -> InputError:
        got = repr(self.text[self.at]) if self.at < len(self.text) else "its end"
        return InputError(f"regex {self.text!r} must {rule}, got {got} at position {self.at}")

    def _peek(self, characters: str) -> bool:
        return self.at < len(self.text) and self.text[self.at] in characters

    def _take(self, character: str) -> bool:
        found = self._peek(character)
        self.at += found
        return found

    def _match(self, pattern: re.Pattern[str], rule: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self._error(rule)
        self.at = found.end()
        return found

    def _union(self) -> int:
        return self.languages.union(self._list(self._intersection, "|"))

    def _intersection(self) -> int:
        return self.languages.intersection(self._list(self._concat, "&"))

    def _list(self, part: Callable[[], int], sign: str) -> list[int]:
        """One part or more, with `sign` between them."""
        parts = [part()]
        while self._take(sign):
            parts.append(part())
        return parts

    def _concat(self) -> int:
        parts = [self._repeat()]
        while self.at < len(self.text) and not self._peek("|&)"):
            parts.append(self._repeat())
        return self.languages.concat(parts)

    def _repeat(self) -> int:
        language = self._complement()
        while self._peek("*+?{"):
            found = self._match(_REPETITION, "have a repetition {n}, {n,} or {n,m}")
            if found["low"] is None:
                low, high = _REPEATS[found[0]]
            else:
                low = int(found["low"])
                high = None if found["comma"] and not found["high"] else int(found["high"] or low)
            if max(low, high or 0) > _LARGEST_BOUND or (high is not None and high < low):
                raise self._error(f"repeat n to m times, n <= m <= {_LARGEST_BOUND}")
            language = self.languages.repeat(language, low, high)
        return language

    def _complement(self) -> int:
        negated = False
        while self._take("~"):
            negated = not negated
        language = self._atom()
        return self.languages.complement(language) if negated else language

    def _atom(self) -> int:
        if self._take("("):
            return self._group()
        if self._take("."):
            return self.languages.any_character
        if self._peek("["):
            return self._class(self._match(_CLASS, "close a class with ']' after one character or more")[1])
        character = self._match(_CHARACTER, "have an operand")[0][-1]
        return self.languages.characters(((character, character),))

    def _group(self) -> int:
        if self._take(")"):
            return self.languages.empty
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"nest at most {_DEEPEST} groups")
        language = self._union()
        if not self._take(")"):
            raise self._error("close a group with ')'")
        self.depth -= 1
        return language

    def _class(self, members: str) -> int:
        found = _MEMBER.findall(members.removeprefix("^"))
        ranges = {(first[-1], (last or first)[-1]) for first, last in found}
        if not ranges or any(last < first for first, last in ranges):
            raise self._error("have a character in a class, and ranges from low to high")
        language = self.languages.characters(tuple(sorted(ranges)))
        if not members.startswith("^"):
            return language
        return self.languages.intersection([self.languages.any_character, self.languages.complement(language)])
