"""V-JEPA 2.1: an independent implementation's states; its published files and sizes; levels, training and costs."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from conftest import real_data, rebuilt, refusals, refuses
from safetensors import safe_open

from jepa.encoders import vision_vjepa21
from jepa.encoders.vision_vjepa21 import PUBLISHED, VJEPA21, VJEPA21Sizes
from jepa.operations import count_flops

TINY = {"width": 24, "depth": 12, "heads": 2, "mlp": 50}
NAME = "vjepa2_1_vit_base_384"


def clips(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_encoder(**arguments) -> VJEPA21:
    """With weights so large that each matters."""
    torch.manual_seed(0)
    encoder = VJEPA21(**{"architecture": TINY, "size": 32, "levels": range(4), **arguments})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return encoder


# --- Against an independent implementation.


@pytest.fixture(scope="module")
def reference():
    """Its inputs and outputs by name, and the hashes of normalised inputs."""
    with safe_open(real_data("vjepa2_1/reference.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module", params=[("tiny_2_1", 2), ("tiny_2_1_depth48", 1)], ids=["distilled", "teacher"])
def encoder(request):
    name, heads = request.param
    return VJEPA21(str(real_data(f"vjepa2_1/{name}.pt")), heads=heads, size=64, levels=range(4))


def test_states_are_those_of_the_reference(encoder, reference):
    """Clips and images of several sizes; one frame twice, which is no image; some tokens alone; all levels as one."""
    tensors, hashes = reference
    prefix = "" if encoder.sizes.depth == 12 else "depth48."
    compared = 0
    for name in ("video", "image", "video_res", "image_res", "video_long"):
        levels = [f"{prefix}{name}.level{block}" for block in encoder.sizes.levels]
        expected = {3: f"{prefix}{name}.last"} | (dict(enumerate(levels)) if levels[0] in tensors else {})
        if expected[3] in tensors:
            frames = tensors[f"{name}.frames_u8"]
            states = list(encoder.exits(frames))
            for level, key in expected.items():
                torch.testing.assert_close(states[level], tensors[key], rtol=0, atol=1e-5)
            pixels = encoder.pixels(frames).permute(0, 4, 1, 2, 3).contiguous()
            assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == hashes[f"{name}.pixels.sha256"]
            compared += len(expected)
    assert compared == (14 if encoder.sizes.depth == 12 else 4)
    some = encoder(tensors["video.frames_u8"], tensors["video_subset.ids"])
    if encoder.sizes.depth == 12:
        torch.testing.assert_close(some[..., -40:], tensors["video_subset.last"], rtol=0, atol=1e-5)
        twice = encoder(tensors["image.frames_u8"][:1].expand(-1, 2, -1, -1, -1))[..., -40:]
        torch.testing.assert_close(twice, tensors["frame_pair.last"], rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(some, tensors["depth48.predictor.context_in"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        (NAME, 86_833_152, 158),
        ("vjepa2_1_vit_large_384", 304_680_960, 302),
        ("vjepa2_1_vit_giant_384", 1_013_267_968, 494),
        ("vjepa2_1_vit_gigantic_384", 1_845_216_768, 590),
    ],
)
def test_published_sizes_have_the_published_parameters(name, parameters, tensors):
    with torch.device("meta"):
        own = list(VJEPA21(architecture=vars(PUBLISHED[name][1]), levels=range(4)).parameters())
    assert (sum(p.numel() for p in own), len(own)) == (parameters, tensors)


# --- Files.


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[VJEPA21, dict[str, object], Path]:
    """A random encoder, what a published file has of it, and that file."""
    encoder, path = random_encoder(), tmp_path_factory.mktemp("published") / "tiny.pt"
    teacher = {f"module.backbone.{name}": tensor for name, tensor in encoder.state_dict().items()}
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    content = {"encoder": student, "ema_encoder": teacher, "opt": {"state": {}, "param_groups": [{}]}, "epoch": 3}
    torch.save(content, path)
    return encoder, content, path


def test_a_file_gives_the_teacher_and_only_the_blocks_asked_for(published):
    encoder, _, path = published
    first = VJEPA21(str(path), heads=2, size=32, levels=[0, 1])
    frames = clips(1, 4, 32, 48)
    assert len(first.blocks) == encoder.sizes.levels[1] + 1
    assert first.width == 2 * 24
    torch.testing.assert_close(first(frames), encoder(frames)[..., :48])


def changed(old, new):
    return {key: value for key, value in {**old, **new}.items() if value is not None}


@pytest.mark.parametrize(
    ("top", "tensors", "message"),
    [
        ({"ema_encoder": None}, {}, "one of ema_encoder and target_encoder, got encoder, opt, epoch"),
        ({"target_encoder": {}}, {}, "must have one of .*, got encoder, ema_encoder, .*target_encoder"),
        ({"ema_encoder": {"weight": torch.ones(1)}}, {}, "got no 'patch_embed.proj.bias'"),
        ({"opt": VJEPA21Sizes(**TINY)}, {}, "not a whole file of tensors: Weights only load failed"),
        ({}, {"norms_block.2.bias": None}, 'Missing key.*: "norms_block.2.bias"'),
        ({}, {"pos_embed": torch.ones(1)}, 'Unexpected key.*: "pos_embed"'),
        ({}, {"blocks.3.attn.proj.bias": torch.ones(5)}, r"size mismatch for blocks.3.attn.proj.bias.*\[5\].*\[24\]"),
        ({}, {"blocks.12.norm1.bias": torch.ones(1)}, "depth must be one of 12, 24, 40, 48, got 13"),
    ],
)
def test_a_file_that_does_not_fit_is_named(top, tensors, message, published, tmp_path):
    _, content, _ = published
    teacher = changed(content["ema_encoder"], {f"module.backbone.{name}": value for name, value in tensors.items()})
    torch.save(changed({**content, "ema_encoder": teacher}, top), tmp_path / "broken.pt")
    said = refuses(message, VJEPA21, str(tmp_path / "broken.pt"), heads=2)
    assert str(tmp_path / "broken.pt") in said
    assert "\n" not in said


def test_a_truncated_file_is_named(published, tmp_path):
    (tmp_path / "broken.pt").write_bytes(published[2].read_bytes()[:5000])
    refuses(r"broken.pt: not a whole file of tensors", lambda: VJEPA21(str(tmp_path / "broken.pt"), heads=2))


def test_a_name_is_downloaded_once(published, tmp_path, monkeypatch):
    encoder, _, path = published
    asked: list[str] = []

    def download(address: str, to: str) -> None:
        asked.append(address)
        if len(asked) == 1:
            raise OSError("no route to host")
        Path(to).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    refuses(f"{NAME} cannot be downloaded from .*: no route to host", VJEPA21, NAME)
    refuses(f"{NAME} must have .*width=768.*, got .*width=24", VJEPA21, NAME, heads=2)
    monkeypatch.setitem(vision_vjepa21.PUBLISHED, NAME, (PUBLISHED[NAME][0], encoder.sizes))
    assert len(VJEPA21(NAME, heads=2).blocks) == 12
    assert asked == ["https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitb_dist_vitG_384.pt"] * 2


test_a_bad_argument_is_named = refusals(
    ({"architecture": None}, "either pretrained or architecture"),
    ({"architecture": {"width": 24}}, "must have width, depth, heads, mlp, got width"),
    ({"architecture": {**TINY, "heads": 5}}, "heads must give each an even width >= 6, got 5 for width 24"),
    ({"architecture": None, "pretrained": "vjepa2_1_vit_huge_384"}, "must be a file or of vjepa2_1_vit_base_384"),
    ({"heads": 2}, "heads must be given with pretrained only, and else in architecture, got 2"),
    ({"size": 40}, "size must be a multiple of 16, got 40"),
    ({"levels": [3, 1]}, r"levels must be of 0, 1, 2, 3 in rising order, got \[3, 1\]"),
    of=lambda arguments: VJEPA21(**{"architecture": TINY, **arguments}),
)


test_bad_frames_are_named = refusals(
    ((1, 3, 32, 32), "1 or a multiple of 2, got 3"),
    ((1, 2, 32, 40), "multiples of 16"),
    ((1, 2, 16, 32), "from 32"),
    of=lambda shape: random_encoder()(clips(*shape)),
)


# --- Levels, training and costs.


def flops(sizes: VJEPA21Sizes, tokens: int, frames: int, blocks: int, kept: int | None = None) -> int:
    """Patches of `frames` frames; in a block queries, keys, values, scores, their use, a projection and two layers."""
    D, N = sizes.width, tokens if kept is None else kept
    return 2 * tokens * D * 3 * frames * 16**2 + blocks * (2 * N * D * (4 * D + 2 * sizes.mlp) + 4 * N**2 * D)


def test_flops_are_those_of_the_closed_form_and_of_the_levels_asked_for():
    encoder = random_encoder()
    video, image = clips(1, 4, 48, 64), clips(1, 1, 48, 64)
    assert count_flops(lambda: encoder(video)).total == flops(encoder.sizes, 2 * 12, 2, 12)
    assert count_flops(lambda: encoder(image)).total == flops(encoder.sizes, 12, 1, 12)
    kept = torch.tensor([[0, 5, 23]])
    assert count_flops(lambda: encoder(video, kept)).total == flops(encoder.sizes, 24, 2, 12, kept=3)
    first = count_flops(lambda: next(encoder.exits(video)))
    assert first.total == flops(encoder.sizes, 24, 2, 3)  # later blocks have not run
    assert torch.equal(first.result, random_encoder()(video)[..., :24])


def test_it_trains_on_clips_and_images_is_recomputed_and_rebuilt_from_its_node():
    encoder = random_encoder(frozen=False, levels=[1, 3]).train()
    recomputed = random_encoder(frozen=False, levels=[1, 3], gradient_checkpointing=True).train()
    recomputed.load_state_dict(encoder.state_dict())
    frames = clips(2, 4, 32, 32)
    for each in (encoder, recomputed):
        (each(frames).square().mean() + each(frames[:, :1]).square().mean()).backward()
    for (name, own), theirs in zip(encoder.named_parameters(), recomputed.parameters(), strict=True):
        assert theirs.grad.abs().sum() > 0, name
        torch.testing.assert_close(own.grad, theirs.grad)
    again = rebuilt(recomputed)
    assert torch.equal(again(frames), encoder(frames))
    assert again.node() == recomputed.node()
    frozen = random_encoder().train()
    assert not any(module.training for module in frozen.modules())
    assert not frozen(frames).requires_grad


@pytest.mark.filterwarnings("default")  # torch's own, while it compiles, are no errors
def test_compiled_blocks_give_the_same_states_at_every_size():
    encoder = random_encoder(levels=[0])
    compiled = copy.deepcopy(encoder)
    for block in compiled.blocks:
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
    for frames in (clips(2, 4, 32, 32), clips(2, 1, 64, 32)):
        torch.testing.assert_close(compiled(frames), encoder(frames), rtol=1e-5, atol=1e-5)
