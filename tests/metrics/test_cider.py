"""CIDEr-D against the reference scorer, the tokenizer against the Penn Treebank's."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import refusals
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider import cider_scorer

from jepa.metrics import DocumentFrequency, cider_d, document_frequency, tokenize

# Few words, so that captions share n-grams and repeat words; tokens that the tokenizer leaves as they are.
captions = st.lists(st.sampled_from(["a", "red", "circle", "moves", "left", "twice"]), max_size=9).map(" ".join)
groups = st.lists(captions, min_size=1, max_size=3)
corpora = st.lists(st.tuples(captions, groups), min_size=1, max_size=7).filter(
    lambda corpus: any(text for _, group in corpus for text in group)  # the reference scorer fails without words
)


class _Sized(list):
    """A list that reports another length: makes the reference scorer use the size of another corpus."""

    def __init__(self, items: Sequence, length: int) -> None:
        super().__init__(items)
        self.length = length

    def __len__(self) -> int:
        return self.length


def reference_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], pool: Sequence[Sequence[str]] | None = None
) -> np.ndarray:
    scorer = cider_scorer.CiderScorer()
    for candidate, group in zip(candidates, references, strict=True):
        scorer += (candidate, list(group))
    if pool is None:
        return scorer.compute_score()[1]
    counter = cider_scorer.CiderScorer()
    for group in pool:
        counter += ("", list(group))
    counter.compute_doc_freq()
    scorer.document_frequency = counter.document_frequency
    scorer.crefs = _Sized(scorer.crefs, len(pool))
    return np.array(scorer.compute_cider())


def pool_of(references: Sequence[Sequence[str]]) -> DocumentFrequency:
    return document_frequency([[tokenize(text) for text in group] for group in references])


@settings(max_examples=60)
@given(corpora)
@example([("red circle", ["red circle"])])  # a corpus of one
@example([("", ["red circle"]), ("red", ["a"])])  # an empty candidate
@example([("red", [""]), ("", ["", "a red"])])  # empty references
@example([("red red red red", ["red red", "a"]), ("a", ["a a a"])])  # repeated words are clipped
def test_equals_the_reference_scorer(corpus):
    candidates, references = zip(*corpus, strict=True)
    expected = reference_scores(candidates, references)
    assert cider_d(candidates, references) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(corpora, corpora)
def test_equals_the_reference_scorer_with_a_fixed_pool(corpus, other):
    candidates, references = zip(*corpus, strict=True)
    pool = [group for _, group in other]
    expected = reference_scores(candidates, references, pool)
    assert cider_d(candidates, references, pool_of(pool)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_fixed_pool_scores_each_pair_by_itself():
    references = [["a red circle moves left"], ["the blue square stops"], ["a red square moves up"]]
    candidates = ["a red circle", "the blue square stops", "a square"]
    pool = pool_of(references)
    together = cider_d(candidates, references, pool)
    alone = [cider_d([c], [r], pool)[0] for c, r in zip(candidates, references, strict=True)]
    assert together.tolist() == alone == cider_d(candidates, references).tolist()
    assert cider_d([], [], pool).shape == (0,)


def test_worked_example():
    # Pool of 2; "red circle" and "red square" share "red" alone, and no word is in more than one document.
    # Unigrams: cosine ln2² / (√2 ln2)² = 1/2; bigrams share nothing; equal lengths. 10 · (1/2) / 4.
    score = cider_d(["red circle"], [["red square"]], pool_of([["red square"], ["a dog"]]))[0]
    assert score == pytest.approx(1.25, abs=1e-12)
    # One word more in the candidate: cosine 1/√6, one bigram more: penalty exp(−1/72).
    score = cider_d(["red circle here"], [["red square"]], pool_of([["red square"], ["a dog"]]))[0]
    assert score == pytest.approx(10 / 4 / math.sqrt(6) * math.exp(-1 / 72), abs=1e-12)


def test_a_perfect_caption_scores_ten_and_an_empty_one_nothing():
    pool = pool_of([["a red circle moves left"], ["the dog sleeps"]])
    scores = cider_d(["A red circle moves left.", "", "unrelated"], [["a red circle moves left"]] * 3, pool)
    assert scores == pytest.approx([10, 0, 0], abs=1e-12)


test_bad_pairs_are_refused = refusals(
    (["a"], [["a"], ["b"]], "candidates and references must be equally many, got 1 and 2"),
    (["a", "b"], [["a"], []], r"references\[1\] must be a sequence of one string or more, got \[\]"),
    (["a"], ["red"], r"references\[0\] must be a sequence of one string or more, got 'red'"),
    ("a", [["a"]], "candidates must be a sequence of strings, got the string 'a'"),
    ([], [], "references must hold at least one document, got none"),
    of=cider_d,
)


def test_document_frequency_counts_documents_not_occurrences():
    pool = document_frequency([[["red", "red", "red"], ["red", "dog"]], [["dog"]], [[]]])
    assert pool.documents == 3
    assert pool.counts == {
        ("red",): 1, ("dog",): 2, ("red", "red"): 1, ("red", "dog"): 1, ("red", "red", "red"): 1
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- tokenizer


def nfd(text: str) -> str:
    """With combining marks of their own."""
    return unicodedata.normalize("NFD", text)


TOKENS = {
    "एक आदमी प्याज काटता है।": "एक आदमी प्याज काटता है ।",
    "धीरे-धीरे हम-तुम हिन्दी.भाषा": "धीरे धीरे हम-त ुम हिन्दी.भाषा",
    "ஒரு மனிதன் வெங்காயம் வெட்டுகிறான்": "ஒரு மனிதன் வெங்காயம் வெட்டுகிறான்",
    "رَجُلٌ يَقْطَعُ البَصَلَ": "رَجُلٌ يَقْطَعُ البَصَلَ",
    "שָׁלוֹם ผู้ชายกำลังหั่นหัวหอม ಕನ್ನಡ": "שָׁלוֹם ผู้ชายกำลังหั่นหัวหอม ಕನ ನಡ",
    nfd("l'été, l'hôpital"): nfd("l' été l'ho ") + "\u0302pital",
    nfd("j'étais qu'été"): nfd("j' étais qu'e ") + nfd("é")[1] + nfd("té"),
    nfd("café-bar U.É. naïve"): nfd("café bar u.é naïve"),
    "#हिन्दी 50%हि 🙂 ok ❤️ go": "#हिन्दी 50 % हि ok ❤ go",
    "A man rides a red-and-blue bike.": "a man rides a red-and-blue bike",
    "The dog's ball doesn't bounce, it'll roll...": "the dog 's ball does n't bounce it 'll roll",
    "I can't stop. I cannot stop!": "i ca n't stop i can not stop",
    "they've we're I'm I'd you'd o'clock 'tis": "they 've we 're i 'm i 'd you 'd o'clock 't is",
    "gonna wanna gotta lemme gimme": "gon na wan na got ta lem me gim me",
    "who'd've thought he couldn't've": "who 'd 've thought he could n't 've",
    '"Really?" -- he\'s (slowly) walking; why': "really he 's slowly walking why",
    "[a bracket] {and a brace}": "a bracket and a brace",
    "“curly” ‘quotes’ — don’t …": "curly quotes do n't",
    "the dogs' tails, James's hat": "the dogs tails james 's hat",
    "#C C picks up a bowl/plate & a cup": "#c c picks up a bowl/plate & a cup",
    "It costs $3.50, 20% off 1,000 items at 5:30pm": "it costs $ 3.50 20 % off 1,000 items at 5:30 pm",
    "the 1st 12-inch pipe, 3/4 full in the 1990s": "the 1st 12-inch pipe 3/4 full in the 1990s",
    "In the U.S. at 6 p.m. Mr. Smith's e.g.": "in the u.s. at 6 p.m. mr. smith 's e.g.",
    "the cat's-eye, two--three hello,world": "the cat 's eye two three hello world",
    "A   tab\ttwo  spaces . final": "a tab two spaces final",
    "Über naïve café's 日本語": "über naïve café 's 日本語",
    "wow!! what?! hmm....": "wow what hmm",
    "": "",
    " ... ": "",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text):
    assert tokenize(text) == TOKENS[text].split()


@pytest.mark.skipif(shutil.which("java") is None, reason="the Penn Treebank tokenizer needs Java")
def test_tokens_equal_the_reference_tokenizer():
    package = Path(cider_scorer.__file__).parents[1]
    jar = next((package / "tokenizer").glob("stanford-corenlp-*.jar"))
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    run = subprocess.run(command, input="\n".join(TOKENS) + "\n", capture_output=True, text=True, check=True)
    dropped = {"''", "'", "``", "`", ",", ":", "-", "--", ";", *(f"-{a}{b}b-" for a in "lr" for b in "rsc")}
    for text, line in zip(TOKENS, run.stdout.splitlines(), strict=False):  # it ends before trailing blank lines
        kept = [word for word in line.split() if word not in dropped and not re.fullmatch(r"[.?!]+", word)]
        assert tokenize(text) == kept, text
