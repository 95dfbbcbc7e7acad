"""Commands that share a checkpoint: `jepa push` to the hub, `jepa export` for other people's tools and runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from jepa.config import Config, Positive
from jepa.errors import InputError

if TYPE_CHECKING:
    from jepa.models.vl_jepa import VLJEPA

S = TypeVar("S", bound=Config)


class PushConfig(Config):
    """What is uploaded, and where to."""

    checkpoint: str
    to: str  # organisation/name
    private: bool = False
    licence: str | None = None  # as the hub's model cards name it, such as apache-2.0


class ExportConfig(Config):
    """What is written for whom."""

    checkpoint: str
    format: Literal["transformers", "onnx", "torch_export"] = "transformers"
    output: str
    adapter: str | None = None  # the base model of a LoRA: what is written is an adapter of PEFT for it
    bound: Positive = 1e-3  # of the largest difference between a role's graph and the model
    int8: bool = False  # of onnx: graphs with quantised weights, too


def push(settings: PushConfig) -> None:
    """Uploads a checkpoint: see `jepa.checkpoint.push`."""
    from jepa import checkpoint

    address = checkpoint.push(Path(settings.checkpoint), settings.to, settings.private, settings.licence)
    print(f"pushed: {address}", flush=True)


def export(settings: ExportConfig) -> None:
    """Writes the language model of an LLM-JEPA as a folder of transformers, or its LoRA alone as one of PEFT.

    Or the roles of a VL-JEPA as graphs, and how far they are from the model. See `LanguageModel.export`,
    `export_adapter` and `export_graphs`.
    """
    from jepa import checkpoint

    if settings.adapter is not None and settings.format != "transformers":
        raise InputError(f"adapter needs format=transformers, got format={settings.format}")
    if settings.int8 and settings.format != "onnx":
        raise InputError(f"int8 needs format=onnx, got format={settings.format}")
    variant = checkpoint.read_config(checkpoint.folder_of(settings.checkpoint))["variant"]
    wanted = "llm_jepa" if settings.format == "transformers" else "vl_jepa"
    if variant != wanted:
        use = {"vl_jepa": ": use format=onnx or format=torch_export", "llm_jepa": ": use format=transformers"}
        raise InputError(
            f"format={settings.format} needs a checkpoint of {wanted}, got one of {variant}{use.get(variant, '')}"
        )
    model = checkpoint.load(settings.checkpoint)
    if settings.format != "transformers":
        _export_graphs(model, settings)
    elif settings.adapter is None:
        model.language.export(Path(settings.output))
    else:
        model.language.export_adapter(Path(settings.output), settings.adapter)
    if settings.format == "transformers":
        model.tokenizer.save(Path(settings.output))
    print(f"exported: {settings.output}", flush=True)


def _export_graphs(model: VLJEPA, settings: ExportConfig) -> None:
    from jepa.export import export_graphs

    suffix = "onnx" if settings.format == "onnx" else "pt2"
    parity, int8 = export_graphs(model, Path(settings.output), suffix, bound=settings.bound, int8=settings.int8)
    for name, found in {"": parity, "int8 ": int8}.items():
        if found is not None:
            parts = [f"{role} {each.difference:.2g}" for role, each in found.roles.items()]
            print(f"{name}largest difference: {', '.join(parts)}; {found.equal_texts} of {found.texts} texts are equal")


def with_local_checkpoint(settings: S) -> S:
    """Settings whose `checkpoint` is a folder; what would be written beside one on the hub goes to `outputs/<name>`."""
    given = getattr(settings, "checkpoint", None)
    if not isinstance(given, str):
        return settings
    from jepa import checkpoint

    if (folder := checkpoint.folder_of(given)) == Path(given):
        return settings
    changed = {"checkpoint": str(folder)}
    if getattr(settings, "output", "") is None:
        changed["output"] = f"outputs/{given.rpartition('/')[2]}/evaluation"
    return settings.model_copy(update=changed)
