"""The stages: schedule, learning rates, decoder data against plain loops, the collapse warning."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from conftest import LLAMA, refuses
from torch.utils.data import DataLoader

from jepa.data.clips import CLASS_QUERY, ClipBatch, ClipBatches, StoredClips
from jepa.data.world import SOLO_ACTIONS, StreamStyle, World, is_held_out, questions
from jepa.decoders.language import LanguageDecoder
from jepa.training.configs import JEPAStageConfig, StageConfig
from jepa.training.latents import (
    DecoderBatches,
    StreamLatents,
    clip_latents,
    predicted_latents,
    prediction_error,
    training_texts,
)
from jepa.training.modules import CollapseWarning, DecoderModule, JEPAModule, text_ids

STAGE = StageConfig(steps=10, batch_size=8, learning_rate=1e-2, warmup_steps=4, validate_every=5)


def jepa_module(model, **changed):
    stage = {**STAGE.model_dump(), "y_encoder_lr_multiplier": 0.05, **changed}
    return JEPAModule(copy.deepcopy(model), JEPAStageConfig(**stage))


def rates_of(module: JEPAModule, steps: int) -> list[list[float]]:
    """The learning rate of each group, step by step."""
    [optimizer], [schedule] = module.configure_optimizers()
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule["scheduler"].step()
    return rates


@pytest.mark.parametrize(("multiplier", "expected"), [(0.05, 0.05), (None, 1.0)])
def test_the_schedule_warms_up_and_ends_at_zero_for_every_group(multiplier, expected, tiny_model):
    module = jepa_module(tiny_model, y_encoder_lr_multiplier=multiplier)
    assert set(module.parameter_groups()[1]["params"]) == set(module.model.y_encoder.parameters())
    fast, slow, temperature = zip(*rates_of(module, 11), strict=True)
    assert fast[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert max(fast) == pytest.approx(0.01)
    assert fast[7] == pytest.approx(0.005)  # half of the cosine
    assert fast[10] == pytest.approx(0, abs=1e-12)
    assert slow == pytest.approx([expected * rate for rate in fast])
    assert temperature == pytest.approx(fast)


def test_a_constant_rate_stays_after_the_warm_up(tiny_model):
    module = jepa_module(tiny_model, schedule="constant", warmup_steps=2, steps=6)
    assert [rates[0] for rates in rates_of(module, 6)] == pytest.approx([0.005, *[0.01] * 5])


@pytest.mark.parametrize("frozen", [False, True])
def test_every_trained_parameter_is_in_one_group(frozen, tiny_model):
    """With a frozen X-Encoder and a target without gradient, those of the Predictor and the loss."""
    model = copy.deepcopy(tiny_model)
    model.x_encoder.requires_grad_(not frozen)
    module = jepa_module(model, target="stop_gradient" if frozen else "gradient")
    grouped = [id(p) for group in module.parameter_groups() for p in group["params"]]
    encoders = [] if frozen else [module.model.x_encoder, module.model.y_encoder]
    trained = [module.model.predictor, module.loss, *encoders]
    assert sorted(grouped) == sorted(id(p) for part in trained for p in part.parameters())


def test_a_regulariser_comes_with_its_weight(tiny_model):
    refuses(r"jepa\.regulariser_weight must be given together", jepa_module, tiny_model, regulariser_weight=0.1)


def test_slow_copies_follow_once_a_step(tiny_model):
    module = jepa_module(tiny_model, target="ema", accumulate=2)
    trainer = L.Trainer(accumulate_grad_batches=2, accelerator="cpu", logger=False)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(1.0)
    moved = []
    for index in range(4):
        before = next(module.teacher.parameters()).clone()
        module.average.on_train_batch_end(trainer, module, None, None, index)
        moved.append(not torch.equal(next(module.teacher.parameters()), before))
    assert moved == [False, True, False, True]


def test_text_ids_are_equal_for_equal_texts():
    ids = text_ids(["b", "a", "b", "c"]).tolist()
    assert ids[0] == ids[2]
    assert len({ids[0], ids[1], ids[3]}) == 3


def test_classes_and_captions_without_a_query():
    batch = ClipBatches(World(), 0, 64, 1, class_fraction=0.5, query_free=True)[0]
    assert {"", CLASS_QUERY} < set(batch.queries)
    names = {text for query, text in zip(batch.queries, batch.texts, strict=True) if query == CLASS_QUERY}
    assert {phrases[0] for phrases in SOLO_ACTIONS.values()} & names
    assert not {"the", "a", "red", "circle", "{o}"} & {word for name in names for word in name.split()}


def test_collapse_is_warned_of(tiny_model, tmp_path):
    module = jepa_module(tiny_model)
    with torch.no_grad():  # both heads say the same whatever they see
        for head in (module.model.predictor.head, module.model.y_encoder.head):
            head.weight.zero_()
            head.bias.fill_(1.0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(accelerator="cpu", **quiet)
    loader = DataLoader(ClipBatches(World(), 0, 8, 1), batch_size=None)
    with pytest.warns(CollapseWarning, match=r"unpaired cosine 1.000 > 0.9"):
        trainer.validate(module, loader, verbose=False)


def gradients(module: JEPAModule, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def gradients_of_batches(module: JEPAModule, batches: list[ClipBatch]) -> dict[str, torch.Tensor]:
    module.log = lambda *_, **__: None
    return gradients(module, sum(module.training_step(batch, 0) / len(batches) for batch in batches))


@pytest.mark.parametrize(
    ("loss", "equal"), [("distance.Cosine", True), ("distance.L2", True), ("infonce.InfoNCE", False)]
)
def test_accumulated_batches_are_the_large_one_unless_rows_are_compared(loss, equal, tiny_model):
    module = jepa_module(tiny_model, loss={"_target_": f"jepa.losses.{loss}"})
    batch = ClipBatches(World(), 0, 8, 1, hard_negatives=0)[0]
    halves = [ClipBatch(*(field[rows] for field in batch[:3]), []) for rows in (slice(0, 4), slice(4, 8))]
    whole, parts = gradients_of_batches(module, [batch]), gradients_of_batches(module, halves)
    close = [torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole]
    assert all(close) == equal


@pytest.mark.parametrize(("target", "decoder_weight"), [("gradient", 0.0), ("ema", 0.0), ("ema", 0.5)])
def test_chunks_give_the_gradients_of_the_whole_batch(target, decoder_weight, tiny_model):
    batch = ClipBatches(World(), 0, 8, 1)[0]
    options = {"target": target, "decoder_weight": decoder_weight}
    whole, parts = (gradients_of_batches(jepa_module(tiny_model, chunk=n, **options), [batch]) for n in (0, 3))
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-3)


def test_chunks_encode_the_frames_of_a_frozen_encoder_once(tiny_model):
    model, batch, rows = copy.deepcopy(tiny_model), ClipBatches(World(), 0, 8, 1)[0], []
    model.x_encoder.requires_grad_(False)
    model.x_encoder.register_forward_hook(lambda module, given, states: rows.append(len(states)))
    whole, parts = (gradients_of_batches(jepa_module(model, chunk=n), [batch]) for n in (0, 3))
    assert rows == [8, 3, 3, 2]
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("decoder", ["prefix", "language"])
def test_the_decoders_cross_entropy_reaches_the_predictor_and_not_the_decoder(decoder, tiny_model):
    """Gradients are those of the latent loss plus `decoder_weight` times those of the decoder's own training loss."""
    model = copy.deepcopy(tiny_model)
    if decoder == "language":
        model.y_decoder = LanguageDecoder(16, architecture={**LLAMA, "vocab_size": 512})
    model.y_decoder.requires_grad_(False).eval()
    batch = ClipBatches(World(), 0, 8, 1)[0]
    found = {}
    for weight in (0.0, 0.5):
        module = JEPAModule(model, JEPAStageConfig(**STAGE.model_dump(), decoder_weight=weight))
        found[weight] = gradients_of_batches(module, [batch])
        grouped = {id(p) for group in module.parameter_groups() for p in group["params"]}
        assert grouped.isdisjoint(map(id, model.y_decoder.parameters()))
    predictions, targets, negatives = module.encode(batch)[1:]
    loss = module.loss(predictions, targets, text_ids(batch.texts), negatives, text_ids(batch.negatives))
    latent = gradients(module, loss)
    predictions = model.predict(model.encode(batch.frames), batch.queries)
    reading = gradients(module, DecoderModule(model, STAGE).cross_entropy(predictions, batch.texts))
    assert {name.split(".")[1] for name in reading} == {"x_encoder", "predictor"}
    assert found[0.0].keys() == found[0.5].keys() == latent.keys()
    for name, gradient in latent.items():
        assert gradient.equal(found[0.0][name])
        total = gradient + 0.5 * reading[name] if name in reading else gradient
        torch.testing.assert_close(found[0.5][name], total, atol=1e-6, rtol=1e-3)
        assert name not in reading or reading[name].any()


def streams() -> StreamLatents:
    latents = torch.nn.functional.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    return StreamLatents(latents, torch.tensor([0, 5, 12]), torch.tensor([4, 11, 19]), ["a b", "c", "d e f"])


def test_decoder_batches_are_noisy_texts_single_steps_and_segment_means():
    recorded = streams()
    texts = ["x", "y"]
    text_latents = torch.nn.functional.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    data = DecoderBatches(text_latents, texts, recorded, noise=0.0, seed=0, batch_size=30, batches=50)
    spans = zip(recorded.texts, recorded.first, recorded.last, strict=True)
    owner = {text: range(int(first), int(last) + 1) for text, first, last in spans}
    lengths = []
    for index in range(50):
        latents, labels = data[index]
        torch.testing.assert_close(latents.norm(dim=-1), torch.ones(30))
        for row in range(10):
            torch.testing.assert_close(latents[row], text_latents[texts.index(labels[row])])
        for row in range(10, 20):
            distance = (recorded.latents[list(owner[labels[row]])] - latents[row]).norm(dim=-1)
            assert distance.min() < 1e-5
        for row in range(20, 30):
            steps = owner[labels[row]]
            spans = [(i, j) for i in steps for j in steps if i <= j]
            means = torch.stack([recorded.latents[i : j + 1].mean(0) for i, j in spans])
            distance = (torch.nn.functional.normalize(means, dim=-1) - latents[row]).norm(dim=-1)
            assert distance.min() < 1e-5
            i, j = spans[int(distance.argmin())]
            lengths.append(j - i + 1)
    assert max(lengths) >= 7  # means of whole events occur


@pytest.mark.parametrize("predictions", [False, True])
@pytest.mark.parametrize("means", [False, True])
def test_kinds_of_decoder_batches_that_are_switched_off_are_texts(predictions, means):
    recorded, texts = streams(), ["x", "y"]
    text_latents = torch.nn.functional.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    data = DecoderBatches(text_latents, texts, recorded, 0.0, 0, 30, 20, predictions, means)
    labels = [label for index in range(20) for label in data[index][1]]
    assert sum(label in texts for label in labels) == 20 * (30 - 10 * predictions - 10 * means)
    told = [row for index in range(20) for row, label in zip(*data[index], strict=True) if label in recorded.texts]
    distances = torch.cdist(torch.stack(told), recorded.latents).amin(1) if told else torch.zeros(0)
    assert bool((distances > 1e-3).any()) is means  # no step's own latent: a mean
    assert bool((distances[: 10 * predictions] < 1e-3).all())


def test_decoder_batches_have_the_noise_asked_for():
    text_latents = torch.zeros(1, 400)
    text_latents[0, 0] = 1
    recorded = StreamLatents(torch.ones(1, 400) / 20, torch.tensor([0]), torch.tensor([0]), ["a"])
    latents, _ = DecoderBatches(text_latents, ["t"], recorded, noise=0.04, seed=0, batch_size=90, batches=1)[0]
    # Unit signal in noise of norm 0.04 * 20 = 0.8: the cosine is 1 / sqrt(1 + 0.64).
    assert float(latents[:30, 0].mean()) == pytest.approx(1 / 1.64**0.5, abs=0.02)


def test_prediction_error_is_the_root_mean_square_difference(tiny_model):
    recorded = predicted_latents(tiny_model, World(), StreamStyle(3.0, shortest=1.0), 0, 2, 12.0, 2.0)
    differences = []
    for text, first, last in zip(recorded.texts, recorded.first, recorded.last, strict=True):
        for step in range(int(first), int(last) + 1):
            differences.append((recorded.latents[step] - tiny_model.embed([text])[0]).detach())
    expected = torch.stack(differences).square().mean().sqrt()
    assert prediction_error(tiny_model, recorded) == pytest.approx(float(expected), rel=1e-5)
    assert len(differences) == len(recorded.latents)


def test_clip_latents_are_predicted_from_stored_states_with_a_text_of_each_clip(tiny_model):
    clips = StoredClips.draw(ClipBatches(World(), 3, 4, 1, tiny_model.frames), 300, tiny_model.encode)
    found, other = (clip_latents(tiny_model, clips, seed) for seed in (0, 1))
    expected = tiny_model.predict(clips.states[250:260].float(), ["what happens?"] * 10).detach()
    torch.testing.assert_close(found.latents[250:260], expected)
    assert found.first.tolist() == found.last.tolist() == list(range(300))
    assert all(text in clips.wordings[scene] for text, scene in zip(found.texts, clips.scenes, strict=True))
    assert found.texts != other.texts


def test_training_texts_hold_no_held_out_caption():
    world = World()
    from jepa.data.world import captions

    texts = set(training_texts(world))
    for part in world.splits["held_out"]:
        for scene in part[::7]:
            assert texts.isdisjoint(captions(scene))
            assert is_held_out(scene, 25)
    answers = {q.answer for scene in world.splits["train"][0] for q in questions(scene)}
    assert answers <= texts


def test_the_decoder_learns_to_say_a_text(tiny_model):
    """Overfit one text: greedy decoding then says it."""
    torch.manual_seed(0)
    model = copy.deepcopy(tiny_model)
    module = DecoderModule(model, STAGE)
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=1e-2)
    latents = model.embed(["the red bar moves left", "a ring"]).detach()
    for _ in range(60):
        optimizer.zero_grad()
        loss = module.cross_entropy(latents, ["the red bar moves left", "a ring"])
        loss.backward()
        optimizer.step()
    assert [d.text for d in model.decode(latents)] == ["the red bar moves left", "a ring"]
