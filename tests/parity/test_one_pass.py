"""One pass over packed rows equals separate passes, in the loss and in every gradient, on every architecture.

The reference knows nothing of segments and masks: one call of the Hugging Face model for each sequence, the loss by
hand. In float64, where the models' own detours through float32 (norms, softmax, rotary angles) are left out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, family
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from jepa.data.packing import IGNORE, pack
from jepa.losses.transition import next_latent_loss
from jepa.models.llm_jepa import LLMJEPA
from jepa.predictors.tied import TiedPredictor
from jepa.predictors.transition import LatentTransition

SLIDING = {"head_dim": 8, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
ARCHITECTURES = {**FAMILIES, "qwen3-sliding": SLIDING}


class InFloat64(TorchFunctionMode):
    """Computations that ask for float32 get float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = [wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        kwargs = {k: wide.get(a, a) if isinstance(a, torch.dtype) else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def model_of(name: str, tokenizer, attention: str, tokens: int = 2, placement: str = "append") -> LLMJEPA:
    language = family(name.partition("-")[0], **ARCHITECTURES[name])
    model = LLMJEPA(language, TiedPredictor(tokens, placement), tokenizer).double()
    model.language.set_attention(attention)
    if "num_experts_per_tok" in ARCHITECTURES[name]:
        model.language.lm.set_experts_implementation("eager")  # the grouped matmul has no float64
    return model


def loss_of(logits, labels, predictions, targets) -> torch.Tensor:
    """Next tokens, cosine, and a quadratic form that sees every direction and length of an embedding."""
    distance = 1 - F.cosine_similarity(predictions, targets).mean()
    return F.cross_entropy(logits, labels) + distance + 1e-2 * (predictions - 0.5 * targets).square().mean()


def in_one_pass(model, encoded, **layout):
    order = torch.arange(len(encoded)).roll(1).tolist() if layout.pop("shuffled", False) else range(len(encoded))
    rows = pack(encoded, model.layout(row_tokens=150, **layout), [encoded[i] for i in order], list(order))
    with InFloat64():
        out = model(rows)
        return loss_of(out.logits, out.labels, out.predictions, out.targets), rows


def one_by_one(model, encoded, direction="forward", view="shared", train_on="answer", shuffled=False, rows="packed"):
    """Every sequence through the model of `transformers` by itself."""
    lm, extra = model.language.lm, model.predictor_ids
    order = torch.arange(len(encoded)).roll(1).tolist() if shuffled else range(len(encoded))

    def run(ids: list[int]):
        out = lm(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return out.logits[0], out.hidden_states[-1][0]

    logits, labels, predictions, targets = [], [], [], []
    with InFloat64():
        for pair, number in zip(encoded, order, strict=True):
            start = len(pair.prompt) + pair.opening if train_on == "answer" else 1
            whole = pair.prompt + pair.completion + (list(pair.after) if train_on == "published" else [])
            logits.append(run(whole)[0][start - 1 : -1])
            labels.append(torch.tensor(whole[start:]))
            views = [[p.prompt if view == "shared" else p.text, p.code] for p in (pair, encoded[number])]
            source, target = (views[0][0], views[1][1]) if direction == "forward" else (views[0][1], views[1][0])
            if model.predictor.placement == "turn":  # both read before the end of turn, which is one token here
                source, target = source[:-1] + extra[::-1], target[:-1]
            else:
                source = source + extra if model.predictor.placement == "append" else extra + source
            predictions.append(run(source)[1][-1])
            targets.append(run(target)[1][-1])
        return loss_of(torch.cat(logits), torch.cat(labels), torch.stack(predictions), torch.stack(targets))


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def assert_equal(model, encoded, **layout):
    loss, rows = in_one_pass(model, encoded, **layout)
    reference = one_by_one(model, encoded, **layout)
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-12)
    ours, theirs = gradients(model, loss), gradients(model, reference)
    assert all(gradient.abs().max() > 0 for gradient in theirs.values())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    return rows


@pytest.fixture(scope="module")
def encoded(pairs, trained_tokenizer):
    """Three pairs of different lengths, longer than the sliding windows, one with a system prompt."""
    chosen = sorted(pairs, key=lambda pair: len(pair.prompt))[4::14]
    return trained_tokenizer.encode([*chosen[:-1], replace(chosen[-1], system="Write regular expressions.")])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_pass_equals_separate_passes(name, attention, encoded, chat_tokenizer):
    model = model_of(name, chat_tokenizer, attention)
    rows = assert_equal(model, encoded)
    assert len(rows.ids) < len(encoded)  # several pairs share a row
    assert model.language.mixed_layers == (name in ("qwen3-sliding", "gemma2", "gemma3_text", "gpt_oss"))
    assert (model.language.window is not None and not model.language.mixed_layers) == (name in ("mistral", "phi3"))


@pytest.mark.parametrize(
    ("tokens", "placement", "layout"),
    [
        (0, "append", {}),
        (0, "append", {"direction": "reverse"}),
        (1, "prepend", {}),
        (2, "append", {"direction": "reverse"}),
        (2, "prepend", {"direction": "reverse", "view": "alone"}),
        (2, "append", {"view": "alone"}),
        (2, "append", {"rows": "separate"}),
        (2, "append", {"rows": "two"}),
        (2, "turn", {"view": "alone"}),
        (2, "turn", {"view": "alone", "rows": "separate", "train_on": "published"}),
        (2, "turn", {"view": "alone", "rows": "two", "train_on": "published"}),
        (2, "append", {"train_on": "everything"}),
        (2, "append", {"shuffled": True}),
        (2, "append", {"shuffled": True, "direction": "reverse"}),
    ],
)
def test_every_layout_equals_separate_passes(tokens, placement, layout, encoded, chat_tokenizer):
    assert_equal(model_of("gemma3_text", chat_tokenizer, "sdpa", tokens, placement), encoded, **layout)


def test_next_latent_prediction_equals_separate_passes(encoded, chat_tokenizer):
    model = model_of("gemma3_text", chat_tokenizer, "sdpa")
    transition, embed = LatentTransition(model.language.width).double(), model.language.lm.get_input_embeddings()
    torch.nn.init.normal_(transition.mlp[-1].weight)
    states, labels = [], []
    with InFloat64():
        for pair in encoded:
            ids = torch.tensor(pair.prompt + pair.completion)
            states.append(model.language.lm(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0])
            start = len(pair.prompt) + pair.opening
            labels.append(torch.full_like(ids, IGNORE))
            labels[-1][start - 1 : -1] = ids[start:]
        apart = pad_sequence(states, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=IGNORE)
        rows = pack(encoded, model.layout(row_tokens=150), encoded, range(len(encoded)))
        found = []
        for where in ((model(rows).states, rows.labels), apart):
            loss = sum(next_latent_loss(transition, *where, embed, model.language.logits, horizon=4))
            found.append((loss, gradients(model, loss)))
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*(gradient for _, gradient in found), rtol=1e-7, atol=1e-10)


def test_a_wrong_window_shows(encoded, chat_tokenizer):
    """The comparison is sharp: one key too many in the sliding layers fails it."""
    model = model_of("gemma3_text", chat_tokenizer, "sdpa")
    model.language.window += 1
    with pytest.raises(AssertionError):
        assert_equal(model, encoded)


def test_padding_takes_no_part(encoded, chat_tokenizer):
    model = model_of("llama", chat_tokenizer, "eager")
    rows = pack(encoded, model.layout(row_tokens=50), encoded, list(range(len(encoded))))
    padding = rows.segments < 0
    assert padding.any()
    changed = rows._replace(ids=rows.ids.masked_fill(padding, 17), positions=rows.positions.masked_fill(padding, 3))
    ours, theirs = model(rows), model(changed)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    torch.testing.assert_close(ours.predictions, theirs.predictions, rtol=0, atol=0)
    said = sum(len(pair.completion) - pair.opening for pair in encoded)
    assert int((rows.labels != IGNORE).sum()) == len(ours.labels) == said
