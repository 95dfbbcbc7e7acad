"""Generation with drafts: the text of the language model alone, whatever is drafted."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, family, refuses

from jepa.encoders.language import LanguageModel
from jepa.models.drafts import Drafts, FirstOf, LatentDrafter, PromptLookup, fastest, generate, packed, verify
from jepa.operations import count_flops
from jepa.predictors.transition import LatentTransition

PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [20, 21], list(range(30, 50)), [3, 4, 3, 4, 3]]


def greedy(language: LanguageModel, prompt: list[int], limit: int) -> list[int]:
    """By full passes of the model itself over the growing text."""
    said: list[int] = []
    while len(said) < limit:
        said.append(int(language.lm(input_ids=torch.tensor([prompt + said])).logits[0, -1].argmax()))
    return said


class KnownDrafter:
    """Drafts the right text with every third token wrong, and rows of different lengths."""

    def __init__(self, prompts: list[list[int]], texts: list[list[int]]) -> None:
        self.texts = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]

    def draft(self, states, texts, most):
        rows = []
        for number, text in enumerate(texts):
            whole = next(known for known in self.texts if known[: len(text)] == list(text)) if text else []
            drafted = whole[len(text) : len(text) + min(most, 1 + (len(text) + number) % 6)]
            rows.append([(token + 1) % 400 if (len(text) + i) % 3 == 0 else token for i, token in enumerate(drafted)])
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long).reshape(-1, width)
        counts = torch.tensor([len(row) for row in rows])
        return Drafts(tokens, counts, torch.zeros_like(counts))


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_the_models_own_whatever_is_drafted(name):
    language = family(name)
    with torch.no_grad():
        alone = [greedy(language, prompt, 16) for prompt in PROMPTS]
    assert [row.tokens for row in generate(language, PROMPTS, 16)] == alone
    drafted = generate(language, PROMPTS, 16, drafter=KnownDrafter(PROMPTS, alone))
    assert [row.tokens for row in drafted] == alone
    for row in drafted:
        assert len(row.tokens) == len(row.passes) + sum(each.accepted for each in row.passes)
        assert len(row.passes) < 14
        assert any(0 < each.accepted < each.drafted for each in row.passes)
    with packed(language):
        for prompt, text in zip(PROMPTS, alone, strict=True):
            [row] = generate(language, [prompt], 16, drafter=KnownDrafter([prompt], [text]))
            assert row.tokens == text


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_rows_end_at_their_stop_token(name):
    language = family(name)
    free = generate(language, PROMPTS, 16)
    stop = next(token for row in free for token in row.tokens[2:6] if token != row.tokens[0])
    expected = [row.tokens[: row.tokens.index(stop) + 1] if stop in row.tokens else row.tokens for row in free]
    assert len({len(tokens) for tokens in expected}) > 1
    known = KnownDrafter(PROMPTS, [row.tokens for row in free])
    transition = LatentTransition(32)
    for drafter in (None, known, PromptLookup(), FirstOf(PromptLookup(), LatentDrafter(language, transition, 4))):
        found = generate(language, PROMPTS, 16, [stop], drafter)
        assert [row.tokens for row in found] == expected
        for row in found:
            assert len(row.tokens) <= len(row.passes) + sum(each.accepted for each in row.passes)


@torch.no_grad()
def test_packed_weights_give_the_same_states_and_count_the_same_operations():
    layers = torch.nn.Sequential(torch.nn.Linear(640, 900), torch.nn.Linear(900, 7, bias=False)).eval()
    hooked, double = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).double()
    hooked.forward = own = lambda x: x + 1
    for x in (torch.randn(1, 640), torch.randn(2, 5, 640)):
        plain = count_flops(lambda x=x: layers(x))
        with packed(layers, hooked, double):
            found = count_flops(lambda x=x: layers(x))
            assert ("forward" in vars(layers[0])) == torch.backends.cpu.get_cpu_capability().startswith("AVX")
            assert (hooked.forward, vars(double).get("forward")) == (own, None)
        assert found.total == plain.total > 0
        assert torch.allclose(found.result, plain.result, atol=1e-5)
    assert "forward" not in vars(layers[0])
    with pytest.raises(KeyError), packed(layers):
        raise KeyError
    layers[0].weight.mul_(2)
    assert not torch.allclose(layers(x), plain.result)


@torch.no_grad()
def test_sampled_text_has_the_distribution_of_the_model():
    """Frequencies of the first tokens after a drafted one, against the model's own probabilities (chi squared)."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, count = 5, 20_000
    logits = torch.randn(1, 3, vocabulary, generator=generator)
    q = torch.randn(1, 2, vocabulary, generator=generator).softmax(-1)
    p = (logits / 0.7).softmax(-1)[0]
    tokens = torch.stack([torch.multinomial(q[0, i], count, replacement=True, generator=generator) for i in (0, 1)], 1)
    drafts = Drafts(tokens, torch.full((count,), 2), torch.zeros(count), q.expand(count, -1, -1))
    accepted, chosen = verify(logits.expand(count, -1, -1), drafts, 0.7, generator)
    said = torch.cat([tokens, chosen[:, None]], 1)
    said.scatter_(1, accepted[:, None], chosen[:, None])
    for place in range(3):  # the token at each place, where the text got that far
        there = accepted >= place
        counted = torch.bincount(said[there, place], minlength=vocabulary).double()
        expected = p[place].double() * int(there.sum())
        assert ((counted - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom, p = 0.001
    assert 0.05 < (accepted == 2).double().mean() < 0.95


@torch.no_grad()
def test_a_draft_ends_at_the_threshold_and_with_its_text():
    language, transition, states = family("llama"), LatentTransition(32), torch.randn(3, 32)

    def drafts(last=(7,), **options):
        return LatentDrafter(language, transition, most=5, **options).draft(states, [[5], [6], last], 9)

    free, some, none = drafts(), drafts(threshold=0.05), drafts(threshold=1.0)
    assert (free.counts.tolist(), none.counts.tolist()) == ([5] * 3, [0] * 3)
    p, sure = states, torch.ones(3)
    for step, chosen in enumerate(torch.cat([torch.tensor([[5], [6], [7]]), free.tokens], 1).T[:5]):
        p = transition(p, language.lm.get_input_embeddings()(chosen))
        best, likeliest = language.logits(p).softmax(-1).max(-1)
        sure, goes_on = sure * best, step < some.tokens.shape[1]  # all rows, or none
        assert (likeliest.tolist(), bool(sure.mean() >= 0.05)) == (free.tokens[:, step].tolist(), goes_on)
        if step == some.tokens.shape[1]:
            break
    assert some.tokens.equal(free.tokens[:, :step])
    assert (some.counts.tolist(), some.predicted.tolist()) == ([step] * 3, [step + 1] * 3)
    ended = drafts([], stop_ids=[int(stop := free.tokens[0, 1])])
    lengths = [[*(row == stop).nonzero()[:, 0].tolist(), 4][0] + 1 for row in free.tokens[:2]]
    assert ended.counts.tolist() == ended.predicted.tolist() == [*lengths, 0]  # the third had ended before
    assert ended.tokens.equal(free.tokens[:, : max(lengths)])


def test_the_fastest_is_found_where_each_round_is_disturbed(monkeypatch):
    clock, seconds = [0.0], {"slow": [6, *[2] * 10], "fast": [9, 1, 1, 9, 9, 1, 1, 9, 9, 1]}  # 1 or 9, of two items
    monkeypatch.setattr("jepa.models.drafts.time.perf_counter", lambda: clock[0])
    found = fastest(["slow", "fast"], lambda name, item: clock.insert(0, clock[0] + seconds[name].pop(0) / 4), [0, 1])
    assert (found, seconds) == ("fast", {"slow": [], "fast": []})


@torch.no_grad()
def test_the_tokens_of_a_draft_may_be_restricted_and_are_counted():
    """The head over some tokens is the whole head where no other token is the likeliest, and costs less."""
    language, transition, states, texts = family("llama"), LatentTransition(32), torch.randn(6, 32), [[5]] * 6
    whole = LatentDrafter(language, transition, most=4)
    free = whole.draft(states, texts, 9).tokens
    same = LatentDrafter(language, transition, 4, only=free.unique().tolist())
    assert same.draft(states, texts, 9).tokens.equal(free)
    few = LatentDrafter(language, transition, 4, only=[9, 7, 9])
    assert set(few.draft(states, texts, 9).tokens.unique().tolist()) <= {7, 9}
    vocabulary = language.lm.get_output_embeddings().weight.shape[0]
    assert whole.cost.flops - few.cost.flops == 2 * 32 * (vocabulary - 2)
    assert whole.cost.weight_bytes - few.cost.weight_bytes == 4 * 32 * (vocabulary - 2)
    said = [row.tokens for row in generate(language, PROMPTS, 16)]
    assert [row.tokens for row in generate(language, PROMPTS, 16, drafter=few)] == said
    refuses(r"only must hold tokens in \[0, \d+\), got \[-1, 3\]", LatentDrafter, language, transition, only=[3, -1])


class AssistantDrafter:
    """Drafts by another language model, greedily."""

    def __init__(self, assistant: LanguageModel, most: int) -> None:
        self.assistant, self.most = assistant, most

    def draft(self, states, texts, most):
        most = min(most, self.most)
        tokens = torch.tensor([greedy(self.assistant, list(text), most) for text in texts])
        counts = torch.full((len(texts),), most)
        return Drafts(tokens, counts, torch.zeros_like(counts))


@pytest.mark.parametrize("kind", ["assistant", "lookup"])
@torch.no_grad()
def test_text_and_passes_are_those_of_transformers(kind):
    """Assisted generation and prompt lookup of transformers, which draft before the prompt is read: from the first
    token on, the same tokens come out of the same passes.
    """
    language, assistant = family("llama"), family("llama")
    for parameter in assistant.parameters():
        parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
    for prompt in PROMPTS:
        drafter = AssistantDrafter(assistant, 4) if kind == "assistant" else PromptLookup(4, longest=2)
        [row] = generate(language, [prompt], 24, drafter=drafter)
        read = list[int]()
        seen = language.lm.register_forward_pre_hook(
            lambda module, args, given, read=read: read.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        options = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 2}
        if kind == "assistant":
            assistant.lm.generation_config.update(
                num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
            )
            options = {"assistant_model": assistant.lm}
        begun = torch.tensor([[*prompt, row.tokens[0]]])
        found = language.lm.generate(begun, max_new_tokens=23, do_sample=False, use_cache=True, **options)
        seen.remove()
        assert found[0, len(prompt) :].tolist() == row.tokens
        assert len(read) == len(row.passes) - 1
        if kind == "assistant":
            assert [read[0] - len(prompt), *read[1:]] == [1 + each.drafted for each in row.passes[1:]]


def test_prompt_lookup_takes_the_longest_and_first_match():
    drafts = PromptLookup(most=4).draft(torch.ones(3), [[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], [1, 2, 3], [5, 4, 5, 6, 5]], 3)
    assert drafts.tokens.tolist() == [[9, 2, 3], [0, 0, 0], [4, 5, 6]]
    assert drafts.counts.tolist() == [3, 0, 3]
