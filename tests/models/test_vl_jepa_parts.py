"""VL-JEPA of pretrained parts: checkpoints that need no hub, streams encoded window by window, real files."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from conftest import FEW_POLICIES, SHORT, SMALL_TEXT_PARTS, annotate, real_data, refuses, tiny_config, write_video
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Rust
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, VJEPA2Config, VJEPA2Model

import jepa
from jepa import checkpoint
from jepa.cli import main
from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.data.video import VideoStream, picture
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.evaluation.streams import SPLITS, encode_stream, encoding_operations, load_streams
from jepa.losses.infonce import InfoNCE
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger, count_flops
from jepa.results import StreamResults, read_document
from jepa.selective import ColourChange, SelectiveDecoder, SelectiveEncoding, StepSelection, Uniform

TEXTS = ["the red bar moves left", "a cyan ring spins", "red"]
QUERIES = ["what happens?", "what colour is the bar?", "how many objects are there?"]
WORDS = [word for text in (*TEXTS, *QUERIES) for word in text.replace("?", " ?").split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny checkpoints in the formats of `transformers`: a V-JEPA 2 of 48 px, and a tokenizer of words."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    VJEPA2Model(VJEPA2Config(crop_size=48, frames_per_clip=8, **sizes, **predictor)).save_pretrained(folder / "vjepa2")
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<eos>", "<unk>", *WORDS]))}
    words = Rust(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder / "words")
    return folder


def seeing(x_encoder, width):
    """The tiny VL-JEPA's, with an X-Encoder of this width."""
    config = tiny_config()
    config["model"]["x_encoder"] = x_encoder
    config["model"]["predictor"]["state_dim"] = width
    return config


def config_of(folder):
    """With the encoder and, for the query, the tokenizer of `folder`."""
    config = seeing({"_target_": "jepa.encoders.vision_vjepa2.VJEPA2", "pretrained": str(folder / "vjepa2")}, 48)
    words = {"_target_": "jepa.data.pretrained_tokenizer.PretrainedTokenizer", "name": str(folder / "words")}
    config["model"]["tokenizers"] = {"predictor": {**words, "max_length": 16}}
    return config


@pytest.fixture(scope="module")
def model(folder, tokenizer) -> VLJEPA:
    torch.manual_seed(0)
    return checkpoint.build_model(config_of(folder), tokenizer).eval()


@pytest.fixture(scope="module")
def image_model(tokenizer) -> VLJEPA:
    """With a timm model over frames, which encodes each apart."""
    encoder = {"_target_": "jepa.encoders.vision_timm.TimmEncoder", "name": "test_vit", "pooled": True}
    torch.manual_seed(0)
    return checkpoint.build_model(seeing({**encoder, "size": 48}, 64), tokenizer).eval()


@pytest.fixture(scope="module")
def vjepa21_model(tokenizer) -> VLJEPA:
    """With a random V-JEPA 2.1, which encodes windows as a whole and images by a path of their own."""
    sizes = {"architecture": {"width": 32, "depth": 12, "heads": 2, "mlp": 64}, "size": 48, "levels": [0]}
    encoder = {"_target_": "jepa.encoders.vision_vjepa21.VJEPA21", **sizes}
    torch.manual_seed(0)
    return checkpoint.build_model(seeing(encoder, 32), tokenizer).eval()


def video(seconds: float = 6.0) -> np.ndarray:
    return np.concatenate(list(World().stream("s", (3,), seconds, StreamStyle(3.0, shortest=1.0)).frames()))


def test_what_is_trained_gets_a_gradient_and_what_is_frozen_none(model):
    model = copy.deepcopy(model).train()
    frames = torch.from_numpy(video()[:24]).unflatten(0, (3, 8))
    loss = InfoNCE()
    parts = (model.predictor, model.y_encoder)
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], lr=1e-3)
    before = copy.deepcopy(model.x_encoder.state_dict())
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(model.predict(model.encode(frames), QUERIES), model.embed(TEXTS))
        value.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for part in parts for p in part.parameters())
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    assert not any(module.training for module in model.x_encoder.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.x_encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.x_encoder.state_dict().items())
    roles = {row["role"]: row for row in model.parameters_by_role()}
    assert roles["X-Encoder"]["trainable"] == 0 < roles["X-Encoder"]["total"]


def test_a_checkpoint_needs_nothing_that_it_was_made_from(folder, tokenizer, tmp_path):
    """What it was made from is deleted before it is loaded."""
    shutil.copytree(folder, tmp_path / "away")
    config = config_of(tmp_path / "away")
    model = checkpoint.build_model(config, tokenizer).eval()
    checkpoint.save(model, config, tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "away")
    loaded = jepa.load(tmp_path / "checkpoint")
    frames = torch.from_numpy(video()[:24]).unflatten(0, (3, 8))
    assert torch.equal(loaded.predict(loaded.encode(frames), QUERIES), model.predict(model.encode(frames), QUERIES))
    assert loaded.tokenizers["predictor"].max_length == 16
    assert loaded.tokenizers["y_encoder"] is loaded.tokenizer
    saved = checkpoint.read_config(tmp_path / "checkpoint")
    checkpoint.save(loaded, saved, tmp_path / "again")  # and on from there
    assert checkpoint.read_config(tmp_path / "again") == saved
    shutil.rmtree(tmp_path / "again" / "tokenizers")
    refuses(r"tokenizer .*predictor", jepa.load, tmp_path / "again")


def test_a_tokenizer_of_no_role_is_named(folder, tokenizer):
    config = config_of(folder)
    config["model"]["tokenizers"]["encoder"] = config["model"]["tokenizers"].pop("predictor")
    refuses("tokenizers must be of predictor, .*, got encoder", checkpoint.build_model, config, tokenizer)


@pytest.mark.parametrize("chunk", [5, 16, 1000])
@pytest.mark.parametrize(
    ("name", "apart"), [("tiny_model", 4), ("image_model", 1), ("model", None), ("vjepa21_model", None)]
)
def test_a_stream_gives_the_latents_of_its_windows(name, apart, chunk, request):
    """Windows of 8 frames every 4, whatever the chunks in which frames arrive; frames apart are encoded once."""
    model, frames, ledger = request.getfixturevalue(name), video(), OperationLedger()
    chunks = (frames[i : i + chunk] for i in range(0, len(frames), chunk))
    latents, times = (np.concatenate(p) for p in zip(*model.stream(chunks, 2.0, QUERIES[0], ledger), strict=True))
    starts = np.arange(0, len(frames) - 8 + 1, 4)
    windows = torch.from_numpy(np.stack([frames[s : s + 8] for s in starts]))
    with torch.no_grad():
        expected = model.predict(model.encode(windows), [QUERIES[0]] * len(starts))
        whole = torch.from_numpy(frames[: len(frames) // 4 * 4])[None]
        flops = count_flops(lambda: model.encode(windows) if apart is None else model.x_encoder.encode_slots(whole))
    np.testing.assert_allclose(latents, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(times, (starts + 4) / 8)
    assert ledger.encoder.calls == (len(starts) if apart is None else len(frames) // apart)
    assert ledger.predictor.calls == len(starts)
    assert ledger.encoder.flops == flops.total


def test_selective_encoding_encodes_the_windows_of_the_steps_selected(model):
    """Live and as the evaluation counts a recorded stream."""
    stream = World().stream("s", (3,), 12.0, StreamStyle(3.0, shortest=1.0))
    frames = np.concatenate(list(stream.frames()))
    steps = StepSelection(1.0, burst=2, hold=6)
    every, times = (np.concatenate(p) for p in zip(*model.stream([frames], 2.0, QUERIES[0]), strict=True))
    live, selection = OperationLedger(), SelectiveEncoding(ColourChange(), steps)
    chosen = model.stream([frames], 2.0, QUERIES[0], live, selection)
    latents, at = (np.concatenate(p) for p in zip(*chosen, strict=True))
    assert 0 < len(at) < len(times)
    np.testing.assert_allclose(latents, every[np.isin(times, at)], rtol=1e-4, atol=1e-5)
    known, _ = encoding_operations(encode_stream(model, stream, 2.0), steps, None, [])
    for ledger in (live, known):
        assert ledger.encoder.calls == ledger.predictor.calls == len(at)
    assert known.encoder.flops == live.encoder.flops


def test_a_picture_is_a_clip_that_stands_still_unless_the_encoder_takes_images(model, image_model, vjepa21_model):
    picture = torch.from_numpy(video()[:3])[:, None]
    for each in (model, image_model):
        assert torch.equal(each.encode(picture), each.encode(picture.repeat(1, 8, 1, 1, 1)))
    assert torch.equal(vjepa21_model.encode(picture), vjepa21_model.x_encoder(picture))
    assert vjepa21_model.encode(picture).shape == (3, 3 * 3, 32)


def test_states_from_disk_stand_for_frames_of_a_frozen_encoder_only(model, image_model):
    frames = torch.from_numpy(video()[:24]).unflatten(0, (3, 8))
    states = model.encode(frames)
    assert torch.equal(model.encode(states), states)
    with torch.no_grad():
        assert torch.equal(image_model.encode(image_model.encode(frames)), image_model.encode(frames))
    refuses("need a frozen X-Encoder", lambda: image_model.encode(torch.zeros(1, 8, 64)))
    refuses(r"states must be \(B, N, 48\) floats, got \(3, 9, 8\)", lambda: model.encode(torch.zeros(3, 9, 8)))


@pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")  # after two steps they may be anything
def test_videos_go_from_files_through_vjepa2_to_emissions(folder, tmp_path):
    """`jepa train`, `evaluate videos=folder` and `report` on two made videos and twice a real one."""
    clip, seconds, run = real_data("video/flipping_a_pancake.mkv"), 10.0, tmp_path / "run"
    model = ["model=vl_jepa_vjepa2", f"model.x_encoder.pretrained={folder / 'vjepa2'}", *SMALL_TEXT_PARTS]
    model += ["model.predictor.state_dim=48", "model.frames=8"]
    assert main(["train", "experiment=scratch", *model, f"hydra.run.dir={run}", *SHORT]) == 0
    for number in range(4):
        if number < 2:
            write_video(tmp_path / f"v_{number}.mp4", number, seconds=12)
        else:
            (tmp_path / f"v_{number}{clip.suffix}").symlink_to(clip.resolve())
    videos = [*annotate(tmp_path, 4, seconds), "candidates=12", "accelerator=cpu"]
    assert main(["evaluate", f"checkpoint={run}/checkpoint", *videos]) == 0
    assert main(["report", f"evaluation={run}/evaluation", *FEW_POLICIES]) == 0
    setting = read_document(run, StreamResults).settings["videos"]
    ledger = setting.operations[0].ledger
    assert ledger.encoder.calls == ledger.predictor.calls == 2 * seconds  # those decoded, windows of 1 s
    assert ledger.decoder.calls > 0
    assert setting.timeline.decodes["uniform"]
    states = [load_file(run / "evaluation" / "videos" / split / "latents.safetensors") for split in SPLITS]
    latents = {name: values for each in states for name, values in each.items() if name.endswith("/latents")}
    assert len(latents) == 4
    same = [values for name, values in latents.items() if "v_2" in name or "v_3" in name]
    np.testing.assert_array_equal(*same)  # the same video has the same latents, which follow what is seen
    assert np.abs(np.diff(same[0], axis=0)).max(1).min() > 0


@pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
def test_videos_go_from_files_through_a_vjepa21_file_to_emissions(tmp_path, monkeypatch):
    """`jepa train` on a published file, `jepa evaluate videos=folder` without it, and a selective decoder."""
    pretrained, run, seconds = tmp_path / "published.pt", tmp_path / "run", 6.0
    shutil.copy(real_data("vjepa2_1/tiny_2_1.pt"), pretrained)
    model = ["model=vl_jepa_vjepa21", f"model.x_encoder.pretrained={pretrained}", "model.x_encoder.heads=2"]
    model += ["model.x_encoder.levels=[1,3]", "model.predictor.state_dim=80", "model.frames=8", *SMALL_TEXT_PARTS]
    short = [each for each in SHORT if not each.startswith("decoder.")] + ["decoder=null"]
    assert main(["train", "experiment=scratch", *model, f"hydra.run.dir={run}", *short]) == 0
    pretrained.unlink()
    for number in range(4):
        write_video(tmp_path / f"v_{number}.mp4", number, seconds=int(seconds))
    videos = [*annotate(tmp_path, 4, seconds), "candidates=5", "accelerator=cpu"]
    assert main(["evaluate", f"checkpoint={run}/checkpoint", *videos]) == 0
    encoded = load_streams(run / "evaluation" / "videos" / "test")[0]
    loaded = jepa.load(run / "checkpoint")
    shown = []
    monkeypatch.setattr("jepa.data.video.picture", lambda *given: shown.append(given) or picture(*given))
    stream = VideoStream(tmp_path / f"{encoded.record.video_id}.mp4", encoded.record, loaded.x_encoder.size, loaded.fps)
    frames = np.concatenate(list(stream.frames()))
    assert len(shown) == len(frames) == seconds * loaded.fps  # windows overlap, and share their frames
    windows = torch.from_numpy(np.stack([frames[start : start + 8] for start in range(0, len(frames) - 7, 4)]))
    with torch.no_grad():
        expected = loaded.predict(loaded.encode(windows), [CAPTION_QUERIES[0]] * len(windows))
    np.testing.assert_allclose(encoded.latents, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert encoded.ledger.encoder.calls == len(windows)
    selective = SelectiveDecoder(Uniform(1.0), loaded, latent_delay=loaded.window / 2)
    emissions = selective.run(encoded.latents, encoded.times)
    assert len(emissions) == selective.ledger.decoder.calls > 1


def test_pretrained_tokenizers_are_those_of_the_roles(model):
    assert isinstance(model.tokenizers["predictor"], PretrainedTokenizer)
    assert model.tokenizers["y_decoder"] is model.tokenizer
