"""FLOPs of a training step of six transformers: measured, in closed form, and by torch's counter as it comes.

    python scripts/bench_flops.py [--quick]

Prints a row for each architecture, random weights, and ends with one JSON line. The measured count and the closed form
are the same number, or the script fails. torch's counter misses the grouped products of mixtures of experts and, in
torch 2.11, fused attention on a CPU. Then the time that the operation ledger takes for one decoded latent, as a
fraction
of the decode.
"""

from __future__ import annotations

import argparse
import json
import timeit
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from jepa.decoders.prefix import PrefixDecoder
from jepa.operations import OperationLedger, count_flops, transformer_flops

SIZE = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 8,
    "moe_intermediate_size": 384,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Olmo2": ("Olmo2Config", {"num_key_value_heads": 8}),
    "Qwen3": ("Qwen3Config", {"head_dim": 64}),
    "Gemma3": ("Gemma3TextConfig", {"head_dim": 64, "num_key_value_heads": 1, "sliding_window": 64}),
    "Mixtral": ("MixtralConfig", EXPERTS | {"num_local_experts": 8}),
    "DeepseekV3": ("DeepseekV3Config", EXPERTS | LATENT),
}


def ledger_fraction(device: str) -> float:
    """Seconds of everything that the ledger is told of a decode, over those of the decode: 32 tokens, 128 wide."""
    torch.manual_seed(0)
    decoder = PrefixDecoder(vocab_size=1024, embedding_dim=256).to(device).eval()
    latent, ledger = torch.randn(1, 256, device=device), OperationLedger()

    def count() -> None:
        with ledger.timed("decoder"):
            pass
        ledger.count(
            "decoder", calls=1, forward_passes=32, tokens=32, flops=10**8, weight_bytes=10**8, cache_bytes=10**6
        )
        ledger.steps(1)
        ledger.emission(1.0)

    def decode() -> None:
        decoder.generate(latent, eos_id=-1)
        if device == "cuda":
            torch.cuda.synchronize()

    decode()
    counting = min(timeit.repeat(count, number=200, repeat=20)) / 200
    return counting / min(timeit.repeat(decode, number=1, repeat=20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter sequences, under 50 s")
    tokens = 128 if parser.parse_args().quick else 1024
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(3, SIZE["vocab_size"], (2, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    rows = {}
    for name, (config_class, options) in tqdm(MODELS.items(), desc="architectures"):
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**SIZE | options)
        model = getattr(transformers, f"{name}ForCausalLM")(config).to(device)

        def step(model: Any = model) -> None:
            model(input_ids=ids, labels=ids).loss.backward()

        measured = count_flops(step)
        fused = any("_scaled_dot_product" in operator for operator in measured.by_operator)
        closed = transformer_flops(config, tokens, batch=len(ids), training=True, fused_attention=fused)
        with FlopCounterMode(display=False) as untouched:
            step()
        rows[name] = (measured.total, closed.total, untouched.get_total_flops())
    widths = {"measured": 12, "closed form": 14, "torch alone": 14, "closed/measured": 17, "torch/measured": 16}
    print(f"{'GFLOPs of a step':18}" + "".join(f"{title:>{width}}" for title, width in widths.items()))
    for name, (ours, formula, torchs) in rows.items():
        gigaflops = f"{ours / 1e9:12.4f}{formula / 1e9:14.4f}{torchs / 1e9:14.4f}"
        print(f"{name:18}{gigaflops}{formula / ours:17.3f}{torchs / ours:16.3f}")
    fraction = ledger_fraction(device)
    print(f"the ledger's fraction of a decode: {fraction:.3%}")
    figures = {
        "bench": "flops",
        "device": device,
        "torch": torch.__version__,
        "closed_form_over_measured": {name: formula / ours for name, (ours, formula, _) in rows.items()},
        "torch_alone_over_measured": {name: round(torchs / ours, 4) for name, (ours, _, torchs) in rows.items()},
        "ledger_over_decode": round(fraction, 6),
    }
    print(json.dumps(figures))
    if unequal := [name for name, (ours, formula, _) in rows.items() if ours != formula]:
        raise SystemExit(
            f"the measured count and the closed form must be the same number, not so: {', '.join(unequal)}"
        )


if __name__ == "__main__":
    main()
