"""CIDEr-D: how close a caption is to its references, in n-grams weighted by how telling they are.

Definition (Vedantam, Zitnick & Parikh 2015, arXiv 1411.5726: tf-idf in the section on the CIDEr metric, clipping and
length penalty in the section on gameability), as the reference code computes it. For a caption s and an n-gram w,

    g_w(s) = (count of w in s) · (ln D − ln max(1, df_w)),

with D the number of documents in the pool (a document is all references of one item) and df_w the number of documents
that hold w. For a candidate c with references s_1..s_m, and n = 1..4,

    CIDEr-D_n(c) = 10/m · Σ_j [Σ_w min(g_w(c), g_w(s_j)) · g_w(s_j)] / (‖g(c)‖ ‖g(s_j)‖)
                              · exp(−(l(c) − l(s_j))² / (2 σ²)),       σ = 6,

with sums and norms over the n-grams of n words; a norm of zero gives 0. CIDEr-D is the mean over n, from 0 to 10. So an
empty candidate scores 0, and so does everything against a pool of one document (ln 1 = 0). Tables of results mostly
print 100 times the value computed here (0.71 as 71); the factor 10 is in the paper and in the code.

Where the reference code (``pycocoevalcap``, followed here) differs from the paper:

- Its length l counts bigrams, the paper's counts words: equal in differences, but for an empty caption, which scores 0.
- Its g has the raw count of an n-gram, the paper's the n-gram's fraction of the caption. In a plain cosine that
  cancels; in the clipped product it does not.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from jepa.errors import InputError
from jepa.metrics.checks import equally_many

_ORDERS = 4  # n-grams of 1..4 words
_SIGMA = 6.0  # width of the length penalty, in words
_SCALE = 10.0

Ngram = tuple[str, ...]

_APOSTROPHES = str.maketrans("’‘`", "'''")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?!\w)")
_FUSED = re.compile(
    r"\b(can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b))|('t)(?=(?:is|was)\b)"
)
_COMBINING = "".join(char for char in map(chr, range(0x300, 0xFE30)) if unicodedata.category(char)[0] == "M")
_LETTERS = (  # spans within which the reference takes combining marks for letters; it drops all others
    "300-487 591-5c7 615-65e 670-7f3 900-903 93c-94e 951-955 962-9e3 a01-a4d a81-acd b82-bcd c01-c03 c3e-c56 d3e-d48 "
    "e31-ecd 1885-1886"
)
_SPANS = [tuple(int(end, 16) for end in span.split("-")) for span in _LETTERS.split()]
_MARK = "".join(char for char in _COMBINING if any(first <= ord(char) <= last for first, last in _SPANS))
_TOKEN = re.compile(
    rf"""
      (?:[^\W\d_]\.){{2,}}(?!\w)                            # u.s.  p.m.
    | (?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|ft)\.(?!\w)      # abbreviations that keep their period
    | \d+(?:[,:]\d+)+(?:\.\d+)?                             # 1,000.50  5:30
    | '(?:s|m|d|ll|re|ve|t|em|til|cause|\d\ds?)(?!\w)       # clitics, and words that begin with an apostrophe
    | [dlj]'(?=\w[{_MARK}])                               # elisions before a letter with a mark
    | (?:[#@](?=[^\W\d_]))?[^\W_]+                          # words joined: left-hand  and/or  3.5
      (?:[-_/][^\W_]+|\.(?:[^\W_]|[{_MARK}])+|(?:'(?!\w[{_MARK}])|(?<=qu)')[^\W_]+)+
    | (?:\#(?=[^\W\d_]))?(?:[^\W\d_]|[{_MARK}])             # words of letters and marks
      (?:[^\W_]|[{_MARK}]|\.(?=[^\W\d_]))*
    | (?:@(?=[^\W\d_]))?[^\W_]+                             # other words: 3  @c
    | [^\w\s.,:;?!'"()\[\]{{}}«»‹›„“”…–—{_COMBINING}\u200b-\u200f\ufeff\U00010000-\U0010ffff-]
                                                            # other signs stand alone: $  %  &
    """,
    re.VERBOSE,
)


def tokenize(text: str) -> list[str]:
    """Split a caption into words as the Penn Treebank tokenizer of the reference scorer does.

    Lower case; ``isn't`` gives ``is n't``, ``dog's`` ``dog 's``, ``cannot`` ``can not``; words joined by a hyphen, a
    slash or a period stay whole; signs such as ``%`` are words; punctuation, quotes and brackets are dropped.

    The reference (Stanford's PTBTokenizer, then a list of punctuation to drop) lets some punctuation slip through that
    is dropped here: brackets (lower-cased to ``-lrb-``, where the list has ``-LRB-``), runs such as ``?!``, and the
    period of a single letter or a hashtag (``person x.``). Its treatment of addresses, markup, currency signs,
    one-character fractions, signed numbers, rare abbreviations and rare contractions (``y'all``) is not reproduced.

    >>> tokenize("The dog's ball doesn't bounce.")
    ['the', 'dog', "'s", 'ball', 'does', "n't", 'bounce']
    """
    text = text.lower().translate(_APOSTROPHES)
    text = _CLITIC.sub(r" \1 ", text)
    text = _FUSED.sub(r"\1\2 ", text)
    return _TOKEN.findall(text)


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many of a pool's documents each n-gram occurs. Only scores under one pool compare.

    >>> document_frequency([[["red", "dog"]], [["dog"]]]).counts[("dog",)]
    2
    """

    counts: Mapping[Ngram, int]
    documents: int


def document_frequency(references: Sequence[Sequence[Sequence[str]]]) -> DocumentFrequency:
    """Documents per n-gram, for n = 1..4, of a pool: for each document its references, each a sequence of tokens."""
    if not len(references):
        raise InputError("references must hold at least one document, got none")
    counts: Counter[Ngram] = Counter()
    for document in references:
        counts.update({ngram for tokens in document for ngram in _ngrams(tokens)})
    return DocumentFrequency(dict(counts), len(references))


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequencies: DocumentFrequency | None = None
) -> np.ndarray:
    """(N,) float64, CIDEr-D of each candidate against its references, in 0..10; that of a corpus is the mean.

    Takes N captions as plain text, with one reference or more for each, else raises `InputError`. `frequencies` is the
    pool that weights the n-grams; None takes ``references`` itself as the pool, each entry one document.

    >>> cider_d(["a red circle moves", "a dog"], [["a red circle moves"], ["the cat sleeps"]]).round(2).tolist()
    [10.0, 0.0]
    """
    equally_many(candidates=candidates, references=references)
    for index, group in enumerate(references):
        if isinstance(group, str) or not len(group):
            raise InputError(f"references[{index}] must be a sequence of one string or more, got {group!r}")
    score = pair_scorer(frequencies or document_frequency([list(map(tokenize, group)) for group in references]))
    pairs = zip(candidates, references, strict=True)
    return np.array([score(candidate, group) for candidate, group in pairs], dtype=np.float64)


def pair_scorer(pool: DocumentFrequency) -> Callable[[str, Sequence[str]], float]:
    """CIDEr-D of a candidate against its references under a pool; what is known of newer texts is kept.

    >>> pair_scorer(document_frequency([[["red", "dog"]], [["a", "cat"]]]))("red dog", ["a red dog"]) > 0
    True
    """
    vector = functools.lru_cache(1 << 14)(lambda text: _vector(tokenize(text), pool))

    def score(candidate: str, references: Sequence[str]) -> float:
        total = sum(_similarity(vector(candidate), vector(reference)) for reference in references)
        return _SCALE * total / (_ORDERS * len(references))

    return score


class _Vector(NamedTuple):
    weights: dict[Ngram, float]  # tf-idf, without zeros
    norms: list[float]  # one for each n
    length: int  # bigrams


def _ngrams(tokens: Sequence[str]) -> Iterator[Ngram]:
    return chain.from_iterable(zip(*(tokens[i:] for i in range(n)), strict=False) for n in range(1, _ORDERS + 1))


def _vector(tokens: Sequence[str], pool: DocumentFrequency) -> _Vector:
    log_documents, frequency = math.log(pool.documents), pool.counts.get
    weights: dict[Ngram, float] = {}
    squares = [0.0] * _ORDERS
    for ngram, count in Counter(_ngrams(tokens)).items():
        weight = count * (log_documents - math.log(frequency(ngram, 1)))
        if weight:
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
    return _Vector(weights, [math.sqrt(square) for square in squares], max(len(tokens) - 1, 0))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Sum over n of the clipped cosine, times the length penalty."""
    products = [0.0] * _ORDERS
    for ngram, weight in candidate.weights.items():  # in order of occurrence: the same rounding in every run
        if other := reference.weights.get(ngram):
            products[len(ngram) - 1] += min(weight, other) * other
    cosines = sum(
        product / (a * b) for product, a, b in zip(products, candidate.norms, reference.norms, strict=True) if product
    )
    return cosines * math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
