"""Writes the graphs of a VL-JEPA, its tokenizers, `export.json`, which says how they fit together, and their parity."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tokenizers
import torch

from jepa import __version__
from jepa.data.world import CAPTION_QUERIES, World, captions
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.errors import InputError, needs_extra
from jepa.export.graphs import Graph, graphs_of, most_tokens
from jepa.export.parity import Parity, measure_parity
from jepa.models.costs import text_cost
from jepa.models.roles import SlotEncoder
from jepa.models.vl_jepa import TEXT_ROLES, VLJEPA
from jepa.operations import weight_bytes
from jepa.runtime import FORMAT, MANIFEST, ExportedModel, OnnxModel, import_onnxruntime

PARITY = "parity.json"
_CLIPS, _LONGEST_QUERY = 16, 64  # that parity is measured on; tokens of a query whose FLOPs are counted
_QUANTISED = ["MatMul", "Gemm", "Gather"]  # dynamic quantisation of convolutions is slower on most processors


class TorchExportModel(ExportedModel):
    """Runs the graphs of `jepa export format=torch_export` by torch, without the classes of the model.

    Args:
        folder: what was written.
    """

    suffix = "pt2"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._modules: dict[str, Callable[..., Any]] = {}

    @torch.no_grad()
    def run(self, graph: str, *inputs: np.ndarray) -> list[np.ndarray]:
        if graph not in self._modules:
            self._modules[graph] = torch.export.load(self.folder / f"{graph}{self._end}").module()
        found = self._modules[graph](*map(torch.from_numpy, inputs))
        return [each.numpy() for each in (found if isinstance(found, (list, tuple)) else [found])]


def export_graphs(
    model: VLJEPA, folder: Path, suffix: str, *, bound: float = 1e-3, int8: bool = False
) -> tuple[Parity, Parity | None]:
    """Writes a model in evaluation mode, as ONNX (`onnx`) or programs of torch.export (`pt2`), and runs what it wrote.

    Returns the parity of the graphs and, with `int8`, of the quantised ones, which no bound is asked of. Both are in
    `parity.json`. `export.json` comes last.

    Raises:
        InputError: a role cannot be exported, a package is missing, or a role differs by more than `bound`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    clips, queries, texts = examples(model)
    graphs = list(graphs_of(model, clips, queries, texts))
    for graph in graphs:
        _write_graph(graph, folder, suffix, int8)
    about = _about(model, graphs, suffix, int8) | {"tokenizers": _write_tokenizers(model, folder)}
    text = json.dumps(about, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    exported = OnnxModel(folder) if suffix == "onnx" else TorchExportModel(folder)
    parity = measure_parity(model, exported, clips, queries, texts)
    quantised = measure_parity(model, OnnxModel(folder, int8=True), clips, queries, texts) if int8 else None
    record = {"bound": bound, "clips": len(clips), **asdict(parity)}
    record |= {} if quantised is None else {"int8": asdict(quantised)}
    (folder / PARITY).write_text(json.dumps(record, indent=1), encoding="utf-8")
    role, difference = parity.worst
    if not difference <= bound:
        (folder / MANIFEST).unlink()
        got = f"{difference:.3g}: {folder / PARITY}"
        raise InputError(f"{role} must differ from the model by at most bound={bound:g}, got {got}")
    return parity, quantised


def examples(model: VLJEPA) -> tuple[torch.Tensor, list[str], list[str]]:
    """Held-out clips (B, F, S, S, 3) uint8 of the built-in world in the model's size, queries and captions of them."""
    world = World(size=model.x_encoder.size, fps=model.fps)
    scenes = held_out_scenes(world, _CLIPS, seed=0)
    queries = [CAPTION_QUERIES[number % len(CAPTION_QUERIES)] for number in range(len(scenes))]
    clips = torch.from_numpy(held_out_clips(world, scenes, model.frames, seed=0))
    return clips, queries, [captions(scene)[0] for scene in scenes]


def _write_graph(graph: Graph, folder: Path, suffix: str, int8: bool) -> None:
    program, path = graph.program(), folder / f"{graph.name}.{suffix}"
    if suffix == "pt2":
        torch.export.save(program, path)
        return
    with needs_extra("export"):
        import onnx  # noqa: F401  torch's exporter and the quantiser need it
        import onnxscript
    op = onnxscript.opset18

    def hypot(one: Any, other: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(one, one), op.Mul(other, other)))

    try:
        written = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.hypot.default: hypot},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"{graph.name} cannot be written as ONNX: {reason}: use format=torch_export") from error
    assert written is not None
    written.save(str(path))
    if int8:
        _quantise(path, folder / f"{graph.name}.int8.{suffix}")


def _quantise(path: Path, to: Path) -> None:
    import_onnxruntime()
    from onnxruntime.quantization import quantize_dynamic

    def wanted(record: logging.LogRecord) -> bool:  # torch's exporter has optimised the graph
        return "run pre-processing before quantization" not in record.getMessage()

    logging.getLogger().addFilter(wanted)
    try:
        quantize_dynamic(path, to, op_types_to_quantize=_QUANTISED)
    finally:
        logging.getLogger().removeFilter(wanted)


def _write_tokenizers(model: VLJEPA, folder: Path) -> dict[str, dict[str, object]]:
    """A `tokenizer.json` for each tokenizer, and what each text role needs to know of its own."""
    files: dict[int, str] = {}
    found = dict[str, dict[str, object]]()
    for role in TEXT_ROLES:
        tokenizer: Any = model.tokenizers[role]
        if id(tokenizer) not in files:
            files[id(tokenizer)] = "tokenizer.json" if tokenizer is model.tokenizer else f"{role}.tokenizer.json"
            with TemporaryDirectory() as place:
                tokenizer.save(Path(place))
                path = Path(place) / "tokenizer.json"
                if not path.is_file():
                    raise InputError(f"the tokenizer of {role} must have a tokenizer.json to be exported")
                plain = tokenizers.Tokenizer.from_file(str(path))
            plain.no_truncation()
            plain.no_padding()
            plain.save(str(folder / files[id(tokenizer)]))
        end = tokenizer.eos_id if role == "y_decoder" else None
        most = most_tokens(model, role)
        found[role] = {"file": files[id(tokenizer)], "pad": tokenizer.pad_id, "end": end, "max_length": most}
    return found


def _about(model: VLJEPA, graphs: Sequence[Graph], suffix: str, int8: bool) -> dict[str, object]:
    """What `export.json` holds but for the tokenizers."""
    decoder: Any = model.y_decoder
    lengths = range(1, min(most_tokens(model, "predictor"), _LONGEST_QUERY) + 1)
    costs = [text_cost(decoder, tokens) for tokens in range(1, decoder.max_length + 1)]
    parts = {"encoder": model.x_encoder, "predictor": model.predictor}
    y_encoder: Any = model.y_encoder
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "graphs": suffix,
        "int8": int8,
        "frames": model.frames,
        "fps": model.fps,
        "size": model.x_encoder.size,
        "tubelet": model.x_encoder.tubelet,
        "slots": isinstance(model.x_encoder, SlotEncoder),
        "takes_images": bool(getattr(model.x_encoder, "takes_images", False)),
        "embedding_dim": int(decoder.project.in_features),
        "prompt": str(getattr(y_encoder, "prompt", "")),
        "lower": bool(getattr(y_encoder, "siglip", False)),
        "signatures": {graph.name: _signature(graph) for graph in graphs},
        "decoding": {
            "depth": len(decoder.blocks),
            "heads": decoder.heads,
            "head_dim": decoder.width // decoder.heads,
            "max_length": decoder.max_length,
            "weight_bytes": weight_bytes(decoder),
            "costs": {"flops": [c.flops for c in costs], "cache_bytes": [c.cache_bytes for c in costs]},
        },
        "flops": {
            "encoder": model.encoding_flops(),
            "predictor": [model.role_flops("predictor", length) for length in lengths],
        },
        "weight_bytes": {part: weight_bytes(module) for part, module in parts.items()},
    }


def _signature(graph: Graph) -> Mapping[str, Any]:
    """Inputs with their types and shapes, free sizes by name, and the outputs' names."""
    inputs = {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "shape": [graph.free[name].get(place, size) for place, size in enumerate(tensor.shape)],
        }
        for name, tensor in graph.inputs.items()
    }
    return {"inputs": inputs, "outputs": list(graph.outputs)}
