"""The tokenizer: reversible on any text, padding marked, saved whole."""

from __future__ import annotations

from conftest import refuses
from hypothesis import given
from hypothesis import strategies as st

from jepa.data.tokenizer import Tokenizer
from jepa.data.world import corpus

TOKENIZER = Tokenizer.train(corpus(), 512)


@given(st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_characters="İ"), min_size=1, max_size=30))
def test_any_text_survives(text):
    """Case and outer white space apart."""
    ids, mask = TOKENIZER.encode([text])
    assert mask.all()
    (back,) = TOKENIZER.decode(ids.tolist())
    assert back == text.lower().strip()


def test_padding_and_end_are_marked():
    ids, mask = TOKENIZER.encode(["red", "the red bar"], eos=True)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert ids[0, 1] == ids[1, 3] == TOKENIZER.eos_id
    assert (ids[0, 2:] == TOKENIZER.pad_id).all()
    assert TOKENIZER.decode(ids.tolist()) == ["red", "the red bar"]


def test_saved_and_loaded(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    texts = ["the cyan ring orbits around the red star", "Ünïcode"]
    assert loaded.encode(texts)[0].tolist() == TOKENIZER.encode(texts)[0].tolist()
    assert len(loaded) == len(TOKENIZER)


def test_bad_input_is_named(tmp_path):
    refuses(r"vocab_size must be >= 258 .* got 100", Tokenizer.train, ["a"], 100)
    refuses(r"tokenizer not found: .*tokenizer.json", Tokenizer.load, tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    refuses(r"tokenizer.json: not a tokenizer", Tokenizer.load, tmp_path)
