"""Commands that share a checkpoint: `jepa push` to the hub, `jepa export` for other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from jepa.config import Config
from jepa.errors import InputError

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
    format: Literal["transformers"] = "transformers"
    output: str
    adapter: str | None = None  # the base model of a LoRA: what is written is an adapter of PEFT for it


def push(settings: PushConfig) -> None:
    """Uploads a checkpoint: see `jepa.checkpoint.push`."""
    from jepa import checkpoint

    address = checkpoint.push(Path(settings.checkpoint), settings.to, settings.private, settings.licence)
    print(f"pushed: {address}", flush=True)


def export(settings: ExportConfig) -> None:
    """Writes the language model of an LLM-JEPA as a folder of transformers, or its LoRA alone as one of PEFT.

    See `LanguageModel.export` and `export_adapter`.
    """
    from jepa import checkpoint
    from jepa.models.llm_jepa import LLMJEPA

    model = checkpoint.load(settings.checkpoint)
    if not isinstance(model, LLMJEPA):
        raise InputError(f"format transformers must be of an LLM-JEPA, got a {type(model).__name__}")
    if settings.adapter is None:
        model.language.export(Path(settings.output))
    else:
        model.language.export_adapter(Path(settings.output), settings.adapter)
    model.tokenizer.save(Path(settings.output))
    print(f"exported: {settings.output}", flush=True)


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
