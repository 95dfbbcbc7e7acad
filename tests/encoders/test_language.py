"""Language models of `transformers`: logits, refusals, vocabulary, LoRA, checkpoints."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, LLAMA, family, language_config, new_model, refuses
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from jepa import checkpoint
from jepa.data.packing import Layout, PackedBatch, pack
from jepa.encoders.language import LanguageModel
from jepa.models.drafts import PromptLookup, generate

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
IDS = torch.arange(20, 32)[None]


def states(language: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros_like(ids)
    return language.states(ids, zeros, zeros - 2, torch.arange(ids.shape[1]).expand_as(ids))


def packed(tokenizer, pairs, model) -> PackedBatch:
    encoded = tokenizer.encode(pairs)
    return pack(encoded, model.layout(row_tokens=150), encoded, list(range(len(pairs))))


def saved_and_loaded(model, config, folder):
    """The model of a checkpoint that holds the architecture, as training writes it."""
    own = {"pretrained": None, "architecture": model.language.architecture()}
    language_model = {**config["model"]["language_model"], **own}
    checkpoint.save(model, {**config, "model": {**config["model"], "language_model": language_model}}, folder)
    return checkpoint.load(folder)


@torch.no_grad()
def assert_same_model(ours, theirs, rows) -> None:
    for found, wanted in zip(ours(rows), theirs(rows), strict=True):
        assert (found is None and wanted is None) or torch.equal(found, wanted)
    assert not changed_tensors(ours.state_dict(), theirs)


def changed_tensors(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name, attention):
    language = family(name)
    language.set_attention(attention)
    with torch.no_grad():
        ours, theirs = language.logits(states(language, IDS)), language.lm(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if name == "gemma2":  # the soft cap is at work
        uncapped = language.lm.get_output_embeddings()(states(language, IDS))
        assert uncapped.abs().max() > 4.0 > 2.0 > ours.abs().max()
    eager = name in ("gemma2", "gpt_oss")  # attention caps its scores, or has sinks
    assert language.lm.config._attn_implementation == ("eager" if eager else attention)


EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, **EXPERTS}


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            {"model_type": "qwen3_next", **LINEAR},
            "layer types must be of full_attention, sliding_attention, got linear_attention",
        ),
        ({"model_type": "mamba", "state_size": 4}, "got linear_attention"),
        ({"model_type": "rwkv", "attention_hidden_size": 32}, "RwkvForCausalLM makes its attention or its logits in a"),
        ({"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2}, "MptForCausalLM makes its attention or"),
        ({"model_type": "bloom", "n_head": 4, "n_layer": 2}, "BloomForCausalLM does not take packed rows"),
        ({"model_type": "hyperclovax", "logits_scaling": 4.0}, "HyperCLOVAXForCausalLM makes its attention or its"),
        ({"model_type": "llama4_text", "num_local_experts": 2}, "got chunked_attention"),
        ({"model_type": "lfm2", "full_attn_idxs": [1]}, "got conv"),
        ({"model_type": "no_such_model"}, "architecture 'no_such_model' cannot be built"),
        ({"model_type": "llama", "num_attention_heads": "four"}, "architecture 'llama' cannot be built"),
        ({"model_type": None}, "architecture.model_type must name a model of transformers, got None"),
        ({"model_type": "bert"}, "Bert"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_models_that_no_block_mask_fits_are_refused(architecture, message):
    torch.manual_seed(0)
    refuses(message, LanguageModel, architecture={**LLAMA, **architecture})


@torch.no_grad()
def test_a_text_that_changes_all_angles_is_refused():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}
    language = family("phi3", rope_parameters=rope, original_max_position_embeddings=11, max_position_embeddings=64)
    ours, theirs = language.logits(states(language, IDS[:, :11])), language.lm(input_ids=IDS).logits[:, :11]
    assert (ours - theirs).abs().max() > 0.1  # a twelfth token changes what comes before
    message = "a text must have at most 11 tokens, since .* got 12"
    refuses(message, states, language, IDS)
    refuses(message, lambda: language.extend(IDS, torch.ones_like(IDS, dtype=torch.bool), None))


def test_one_source_of_weights_is_needed(tmp_path):
    for arguments in ({}, {"pretrained": "a", "architecture": LLAMA}):
        refuses("give either pretrained or architecture", LanguageModel, **arguments)
    refuses(r"model .* cannot be loaded", lambda: LanguageModel(pretrained=str(tmp_path)))


def test_checking_a_model_leaves_the_model_as_it_is():
    torch.manual_seed(0)
    language = LanguageModel(architecture=LLAMA)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    assert all(torch.equal(a, b) for a, b in zip(language.lm.parameters(), lm.parameters(), strict=True))
    assert language.lm.training
    assert all(p.grad is None for p in language.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_grows_and_never_shrinks(tied):
    language = family("llama", tie_word_embeddings=tied)
    before = language.lm.get_input_embeddings().weight.detach().clone()
    language.fit_vocabulary(390, [])
    assert language.lm.get_input_embeddings().num_embeddings == 400
    language.fit_vocabulary(404, [400, 401, 402, 403])
    embeddings, head = language.lm.get_input_embeddings().weight, language.lm.get_output_embeddings().weight
    assert embeddings.shape[0] == head.shape[0] == language.lm.config.vocab_size == 404
    assert torch.equal(embeddings[:400], before)
    assert (embeddings is head) == tied
    new = embeddings[400:].detach()
    assert torch.pdist(new).min() > 0.1 * new.norm(dim=1).mean()
    assert new.norm(dim=1).mean() == pytest.approx(float(before.norm(dim=1).mean()), rel=0.5)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # before it fails
@pytest.mark.parametrize(
    ("tied", "lora", "message"),
    [
        (False, {"rank": 4}, "got an unexpected keyword argument 'rank'"),
        (False, {"r": 0}, "should be a positive integer value"),
        (False, {"target_modules": ["no_such_layer"]}, "no_such_layer"),
        (True, {"modules_to_save": ["lm_head"]}, "TrainableTokensLayer"),
    ],
)
def test_what_peft_cannot_attach_is_refused_by_its_key(tied, lora, message, chat_tokenizer):
    config = language_config({**LLAMA, "tie_word_embeddings": tied}, tokens=2, lora=lora)
    refuses(f"language_model.lora must suit .*, got .*{message}", checkpoint.build_model, config, chat_tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_predictor_embeddings_alone(tied, pairs, chat_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = language_config({**LLAMA, "tie_word_embeddings": tied}, tokens=2, lora={"r": 4, "lora_alpha": 8})
    model = checkpoint.build_model(config, chat_tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = model.language.lm.get_input_embeddings().weight.detach().clone()
    rows = packed(chat_tokenizer, pairs[:6], model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # the second matrix of an adapter starts at 0 and holds back the first one's gradient
        out = model(rows)
        loss = F.cross_entropy(out.logits, out.labels) + (out.predictions - out.targets).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = changed_tensors(before, model)
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in changed)
    lora = {name for name in before if "lora_" in name}
    assert lora <= changed
    assert any("trainable_tokens_delta" in name for name in changed)
    embedded = model.language.lm.get_input_embeddings()(torch.arange(len(base))).detach()
    rows_changed = (embedded != base).any(dim=1).nonzero().flatten().tolist()
    assert rows_changed == model.predictor_ids

    again = saved_and_loaded(model, config, tmp_path)
    assert_same_model(model.eval(), again, rows)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_checkpoint_gives_the_same_model(name, tied, pairs, chat_tokenizer, tmp_path):
    architecture = {**LLAMA, "model_type": name, **FAMILIES[name], "tie_word_embeddings": tied, "pad_token_id": None}
    config = language_config(architecture, tokens=2)
    model = new_model(config, chat_tokenizer)
    again = saved_and_loaded(model, config, tmp_path)
    assert_same_model(model, again, packed(chat_tokenizer, pairs[:4], model))
    head, embeddings = again.language.lm.get_output_embeddings(), again.language.lm.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tied
    assert again.predictor_ids == model.predictor_ids
    assert again.answer([pairs[0].prompt], 5) == model.answer([pairs[0].prompt], 5)


VISION = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
VISION |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}


@pytest.mark.parametrize("name", ["llama", "mistral4", "mistral3", "mistral3, tied"])
def test_a_checkpoint_of_a_pretrained_model_does_not_need_it_again(name, pairs, chat_tokenizer, tmp_path):
    """Mistral 3 is released with images: its text model, here Mistral 4, is what is read."""
    hub, folder = tmp_path / "hub", tmp_path / "checkpoint"
    torch.manual_seed(0)
    name, _, tied = name.partition(", ")
    kind = name.replace("mistral3", "mistral4")
    text = {**LLAMA, **FAMILIES[kind], "model_type": kind, "vocab_size": 448, "pad_token_id": None}
    whole = {"model_type": name, "text_config": text, "vision_config": VISION, "tie_word_embeddings": bool(tied)}
    auto = AutoModelForCausalLM if name == "llama" else AutoModelForImageTextToText
    lm = auto.from_config(AutoConfig.for_model(**(text if kind == name else whole))).eval()
    lm.config.tie_word_embeddings = True  # as where it is not said, whatever the weights are
    lm.save_pretrained(hub)
    chat_tokenizer.save(hub)
    config = language_config(pretrained=str(hub))
    config["model"]["language_model"]["architecture"] = None
    model = checkpoint.build_model(config, type(chat_tokenizer).pretrained(str(hub))).eval()
    language, rows = model.language, packed(chat_tokenizer, pairs[:4], model)
    ours, theirs = language.logits(states(language, IDS))[..., :400], lm(input_ids=IDS).logits[..., :400]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert language.lm.get_input_embeddings().num_embeddings == 448
    assert (language.lm.get_output_embeddings().weight is language.lm.get_input_embeddings().weight) == bool(tied)
    out = model(rows)
    (F.cross_entropy(out.logits, out.labels) + (out.predictions - out.targets).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    saved_and_loaded(model, config, folder)
    shutil.rmtree(hub)
    again = checkpoint.load(folder)
    assert_same_model(model, again, rows)
    prompt = chat_tokenizer.encode(pairs[:1])[0].prompt
    [drafted] = generate(again.language, [prompt], 8, drafter=PromptLookup())
    assert drafted.tokens == generate(language, [prompt], 8)[0].tokens
    assert again.answer([pairs[0].prompt], 5) == model.answer([pairs[0].prompt], 5)


def test_gradient_checkpointing_gives_the_same_gradients(pairs, chat_tokenizer):
    encoded = chat_tokenizer.encode(pairs[:4])
    rows = pack(encoded, Layout(150))
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        language = LanguageModel(architecture=LLAMA, gradient_checkpointing=on).train()
        language.states(rows.ids, rows.segments, rows.parents, rows.positions).square().mean().backward()
        found.append({name: p.grad for name, p in language.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_a_gguf_file_is_loaded_as_plain_weights(tmp_path):
    """As llama.cpp writes a Llama: the halves of queries and keys interleaved, its own names."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(**{key: value for key, value in LLAMA.items() if key != "model_type"})
    model, path = LlamaForCausalLM(config).eval(), tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    names = {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    names |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}
    for name, tensor in model.state_dict().items():
        place, tensor = name.removeprefix("model.").removesuffix(".weight"), tensor.clone()
        if place.startswith("layers."):
            _, index, part = place.split(".", 2)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                rows, columns = tensor.shape
                tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
            place = f"blk.{index}.{names[part]}"
        place = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}.get(place, place)
        writer.add_tensor(f"{place}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = LanguageModel(str(path)).eval()
    assert "quantization_config" not in loaded.architecture()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.lm(input_ids=ids).logits, model(input_ids=ids).logits)
