"""Shared fixtures: a tiny VL-JEPA and a tiny LLM-JEPA in the real architecture, and their plain configurations."""

from __future__ import annotations

import gc
import os

gc.set_threshold(0)  # until all is imported: see pytest_collection_finish
# One thread in each process, told before torch is imported: as many processes as cores run at once.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import copy
import importlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
import torch
import yaml
from filelock import FileLock
from hypothesis import settings
from omegaconf import OmegaConf

from jepa import checkpoint
from jepa.build import build
from jepa.cli import compose, main
from jepa.config import PolicyConfig, validate
from jepa.data.chat import ChatTokenizer
from jepa.data.json_lines import write_lines
from jepa.data.manifests import Sample, media_of, sample_fields
from jepa.data.pairs import Example
from jepa.data.regex_grammar import generate
from jepa.data.tokenizer import Tokenizer, train_bpe
from jepa.data.world import corpus
from jepa.encoders.language import LanguageModel
from jepa.errors import InputError
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.vl_jepa import VLJEPA

if TYPE_CHECKING:
    from jepa.live import Setup
    from jepa.results import StreamResults

# The same examples in every run; to search for new ones: pytest --hypothesis-profile=default
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through it again and again, and less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def tokenizers_are_trained_once() -> Iterator[None]:
    """Many tests train a model on the same texts: their merges are found once a process."""

    @cache
    def trained(texts: tuple[str, ...], vocab_size: int, special: tuple[str, ...], lower: bool) -> str:
        return train_bpe(texts, vocab_size, list(special), lower).to_str()

    def remembered(
        texts: Iterable[str], vocab_size: int, special: list[str], lower: bool = False
    ) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(trained(tuple(texts), vocab_size, tuple(special), lower))

    with pytest.MonkeyPatch.context() as patch:
        for module in ("tokenizer", "chat"):
            patch.setattr(f"jepa.data.{module}.train_bpe", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def compositions_share_what_they_read() -> Iterator[None]:
    """Hydra copies every schema, reads every file and composes twice for each command: here it does so once."""
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource as Source
    from hydra._internal.hydra import Hydra
    from hydra.core.config_store import ConfigStore

    load, loaded = Source.load_config, dict[tuple[str, str], Any]()

    def load_config(self: Source, config_path: str) -> Any:
        key = self.path, config_path
        if key not in loaded:
            loaded[key] = load(self, config_path)
        return copy.deepcopy(loaded[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "load_config", load_config)
        patch.setattr(ConfigStore, "__deepcopy__", lambda self, _: self, raising=False)  # it copies what it gives
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # which conf/ nowhere sets
        yield


def refuses(message: str, call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """What a call says that must end in an InputError; the message, a pattern, is looked for in it."""
    with pytest.raises(InputError, match=message or None) as refused:
        call(*arguments, **options)
    return str(refused.value)


def refusals(*cases: tuple[Any, ...], of: Callable[..., object] = lambda call: call()) -> Callable[..., None]:
    """A test of many: a case is what `of` is given, a call to be made unless told, and what the InputError must say."""

    @pytest.mark.parametrize("case", cases, ids=[case[-1] for case in cases])
    def refused(case: tuple[Any, ...]) -> None:
        refuses(case[-1], of, *case[:-1])

    return refused


def rebuilt(module: Any) -> Any:
    """What the node of a module builds, with the module's weights."""
    again = build(module.node())
    again.load_state_dict(module.state_dict())
    return again


def never(*_: object, **__: object) -> Any:
    """Stands in for work that must not be done again, or not yet."""
    raise AssertionError("done")


class Program:
    """A pickle of it runs a program, which leaves `was_run` in the current folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch was_run",)


def without_seconds(record: Any) -> Any:
    """A record without its wall times."""
    if isinstance(record, dict):
        return {key: without_seconds(value) for key, value in record.items() if key != "seconds"}
    return [without_seconds(each) for each in record] if isinstance(record, list) else record


def changed_file(path: Path, key: str, value: Any) -> None:
    """Writes another value at a dotted key of a file of YAML, or of JSON, which is YAML."""
    document = OmegaConf.load(path)
    OmegaConf.update(document, key, value, merge=False, force_add=True)
    plain = OmegaConf.to_container(document)
    path.write_text(json.dumps(plain) if path.suffix == ".json" else yaml.safe_dump(plain), encoding="utf-8")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with 2 and one line `error: …` that holds the parts; gives that line."""

    def run(arguments: list[str], *parts: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        [line] = [row for row in error.splitlines() if row.startswith("error: ")]
        assert [part for part in parts if part not in line] == []
        return line

    return run


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a file of scripts/ by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module


def real_data(name: str) -> Path:
    """A file or folder of the real data. Skips the test, or the module that calls this, where it is not there."""
    shared = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("JEPA_REAL_DATA", shared)) / name
    if not path.exists():
        pytest.skip(f"no real data at {path}", allow_module_level=True)
    return path


def write_samples(samples: list[Sample], folder: Path) -> Path:
    """Writes samples of the procedural world as a manifest, with a folder of pictures for each medium."""
    for media in {medium.name: medium for sample in samples for medium in media_of(sample)}.values():
        (folder / media.name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(media.source):
            (folder / media.name / f"{number:04d}.png").write_bytes(picture)
    return write_manifest(folder / "manifest.jsonl", samples)


def write_manifest(path: Path, samples: list[Sample]) -> Path:
    write_lines(path, (sample_fields(sample, lambda _, media: media.name) for sample in samples))
    return path


def write_chat(path: Path, examples: list[Example]) -> Path:
    def turn(role: str, content: str | None) -> list[dict[str, str]]:
        return [] if content is None else [{"role": role, "content": content}]

    rows = []
    for e in examples:
        turns = turn("system", e.system) + turn("user", e.prompt) + turn("assistant", e.completion)
        views = {"text": turn("user", e.text), "code": turn("assistant", e.code)}
        rows.append({"messages": turns} | {name: view for name, view in views.items() if view})
    write_lines(path, rows)
    return path


SHORT = [  # stages of a VL-JEPA for two steps
    *(f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("steps=2", "batch_size=8", "validate_every=1")),
    *("jepa.validation_batches=1", "decoder.validation_batches=1", "decoder.streams=2", "decoder.stream_seconds=10"),
    *("workers=0", "accelerator=cpu"),
]
FEW_POLICIES = [  # those that take longest are left out of a report
    f"~policies.{name}"
    for name in (
        *("ward_mean", "ward_midpoint", "oracle", "local_variance", "prediction_error", "gate_cache"),
        *("on_demand", "on_demand_cache", "on_demand_once_cache"),
    )
]
SMALL_TEXT_PARTS = [  # of conf/model/vl_jepa_small.yaml
    f"model.{part}.{key}" for part in ("predictor", "y_encoder", "y_decoder") for key in ("width=32", "depth=1")
]


def write_video(path: Path, seed: int, seconds: int = 24) -> None:
    """A video of a square that changes its colour every three seconds."""
    import av

    colours = np.random.default_rng(seed).integers(0, 255, (seconds // 3 + 1, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10 * seconds):
            picture = np.full((48, 64, 3), 80, dtype=np.uint8)
            left = 10 + number % 30
            picture[10:30, left : left + 20] = colours[number // 30]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def annotate(folder: Path, count: int, seconds: float) -> list[str]:
    """Annotations of `v_0`, `v_1` and so on in a folder, an event every three seconds, as overrides of `evaluate`."""
    spans = [[start, min(start + 3.0, seconds)] for start in np.arange(0.0, seconds, 3.0).tolist()]
    said = [f"event {number % 3}" for number in range(len(spans))]
    one = {"duration": seconds, "timestamps": spans, "sentences": said}
    (folder / "captions.json").write_text(json.dumps({f"v_{i}": one for i in range(count)}), encoding="utf-8")
    timeline = ["videos.timeline.format=activitynet", f"videos.timeline.path={folder}/captions.json"]
    return ["videos=folder", f"videos.folder={folder}", *timeline]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium, for tests of pages. Skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name) or shutil.which(name, path="/usr/bin")
        if found:
            return found
    pytest.skip("no chromium on this machine")


def tiny_config() -> dict[str, Any]:
    """The `world` and `model` of a checkpoint's configuration, 32 wide and one block deep."""
    vit = {"tubelet": 4, "patch_size": 12, "embed_dim": 32, "depth": 1, "num_heads": 2}
    size = {"vocab_size": 512, "embedding_dim": 16, "width": 32, "depth": 1, "heads": 2}
    return {
        "name": "tiny",
        "seed": 0,
        "world": {"_target_": "jepa.data.world.World", "size": 48, "fps": 8},
        "model": {
            "_target_": "jepa.models.vl_jepa.VLJEPA",
            "frames": 8,
            "fps": 8,
            "x_encoder": {
                "_target_": "jepa.encoders.vision.FrameViT",
                "name": "vit_tiny_patch16_224",
                "size": 48,
                **vit,
            },
            "predictor": {"_target_": "jepa.predictors.transformer.QueryPredictor", "state_dim": 32, **size},
            "y_encoder": {"_target_": "jepa.encoders.text.TextTransformer", **size},
            "y_decoder": {"_target_": "jepa.decoders.prefix.PrefixDecoder", **size},
        },
    }


def vlm_config() -> dict[str, Any]:
    """Of a token-space baseline: a two-layer Llama, 32 wide, on the X-Encoder of the tiny VL-JEPA."""
    tiny = tiny_config()
    architecture = {**LLAMA, "vocab_size": 512, "tie_word_embeddings": True}
    language_model = {"_target_": "jepa.encoders.language.LanguageModel", "architecture": architecture}
    parts = {"x_encoder": tiny["model"]["x_encoder"], "language_model": language_model}
    model = {"_target_": "jepa.models.token_vlm.TokenVLM", "frames": 8, "fps": 8, "max_length": 12, **parts}
    return {**tiny, "variant": "token_vlm", "model": model}


def new_model(config: dict[str, Any], *tokenizers: Any) -> Any:
    """A model of a plain configuration, of random weights from a fixed seed, in evaluation mode."""
    torch.manual_seed(0)
    return checkpoint.build_model(config, *tokenizers).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus(), 512)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> VLJEPA:
    """Random weights from a fixed seed, in evaluation mode. Do not change it: copy it."""
    return new_model(tiny_config(), tokenizer)


@pytest.fixture(scope="session")
def stream_results(tiny_model: VLJEPA, tmp_path_factory: pytest.TempPathFactory) -> StreamResults:
    """Seven policies swept over made streams of two settings: a document of the real pipeline."""
    from made_streams import made_results

    with torch.no_grad():
        return made_results(tiny_model, tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="session")
def stream_report(stream_results: StreamResults, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the report on them, by name."""
    from jepa.report import streams
    from jepa.report.render import write_report

    return write_report(stream_results, streams.report(stream_results), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: VLJEPA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model's checkpoint, with the record of a training."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    checkpoint.save(tiny_model, tiny_config(), folder)
    stage = {"name": "jepa", "steps": 2, "samples": 16, "seconds": 1.0, "curve": [{"step": 1.0, "loss": 2.0}]}
    (folder / "training.json").write_text(json.dumps({"stages": [stage]}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The tiny model's folder of `jepa export`: ONNX, also in int8. One process makes it for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "exported"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            given = [f"checkpoint={tiny_checkpoint}", "format=onnx", "int8=true", f"output={folder}"]
            assert main(["export", *given]) == 0
    return folder


@pytest.fixture(scope="session")
def live_setup(tiny_model: VLJEPA) -> Setup:
    """What live sessions of the tiny model share, with the policies of conf/policies/live.yaml."""
    from jepa.live import Setup

    policies = OmegaConf.to_container(compose("live", ["checkpoint=none"]).policies)
    return Setup(tiny_model, {name: validate(node, PolicyConfig) for name, node in policies.items()})


LLAMA = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}


BERT = {
    "model_type": "bert", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {  # multi-head latent attention, a dense layer and one of experts
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4,
    "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS},
    "olmo2": {},
    "mistral": {"sliding_window": 6},
    "mixtral": EXPERTS,
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mistral4": LATENT,
    "deepseek_v3": LATENT,
    "gpt_oss": {"head_dim": 8, **WINDOWS, **EXPERTS},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi3": {"sliding_window": 6},
    "glm4": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.0625},
}


def architecture(name: str) -> dict[str, Any]:
    """Of a family of language models, with weights so large that each matters."""
    return {**LLAMA, "model_type": name, "pad_token_id": None, "initializer_range": 0.3, **FAMILIES[name]}


def family(name: str, **changed: Any) -> LanguageModel:
    """A random language model of a family, two layers deep."""
    torch.manual_seed(0)
    return LanguageModel(architecture={**architecture(name), **changed}).eval()


def language_config(
    architecture: dict[str, Any] | None = None, tokens: int = 1, placement: str = "append", **language_model: Any
) -> dict[str, Any]:
    """The plain configuration of an LLM-JEPA's checkpoint: a Llama 32 wide and two blocks deep unless told."""
    language_model = {"architecture": architecture or LLAMA, **language_model}
    parts = {
        "language_model": {"_target_": "jepa.encoders.language.LanguageModel", **language_model},
        "predictor": {"_target_": "jepa.predictors.tied.TiedPredictor", "tokens": tokens, "placement": placement},
    }
    model = {"_target_": "jepa.models.llm_jepa.LLMJEPA", **parts}
    return {"name": "tiny", "variant": "llm_jepa", "seed": 0, "data": {}, "model": model}


@pytest.fixture(scope="session")
def pairs() -> list[Example]:
    """40 requests for regular expressions, with their answers."""
    return generate(pairs=40, test_pairs=2, validation_fraction=0.0, seed=0, system=False).train


@pytest.fixture(scope="session")
def trained_tokenizer(pairs: list[Example]) -> ChatTokenizer:
    return ChatTokenizer.train([text for pair in pairs for text in (pair.prompt, pair.completion)], 400)


@pytest.fixture
def chat_tokenizer(trained_tokenizer: ChatTokenizer) -> ChatTokenizer:
    """A fresh copy: a model adds its [PRED] tokens to it."""
    return copy.deepcopy(trained_tokenizer)


@pytest.fixture(scope="session")
def tiny_llm_jepa(trained_tokenizer: ChatTokenizer) -> LLMJEPA:
    """Random weights from a fixed seed, in evaluation mode. Do not change it: copy it."""
    return new_model(language_config(), copy.deepcopy(trained_tokenizer))
