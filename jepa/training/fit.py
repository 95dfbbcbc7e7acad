"""One Lightning fit, as every stage of every variant uses it, and the stages of a run."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from jepa import checkpoint
from jepa.config import LanguageTrainConfig, RunConfig, TrainConfig
from jepa.errors import InputError
from jepa.training.callbacks import CheckpointCallback, ProgressBar, StageRecord
from jepa.training.modules import Stage
from jepa.training.sharding import gather

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
StageRun: TypeAlias = Callable[[M, CheckpointCallback], StageRecord]
_PRINTED = 20  # media that were left out


def on_gpu(config: RunConfig) -> bool:
    return config.accelerator != "cpu" and torch.cuda.is_available()


def precision(config: RunConfig) -> Literal["32-true", "bf16-mixed"]:
    """The precision to train in: with "auto" bf16-mixed where the device computes in bf16, and float32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if computes_in_bf16(own_device(config).type) else "32-true"


def computes_in_bf16(device: str) -> bool:
    """Whether a "cuda" or "cpu" device has bf16 instructions. A CPU without them is many times slower in bf16."""
    found: bool = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return found


def own_device(config: RunConfig) -> torch.device:
    """Where this process trains: on several GPUs, each process on one."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu(config) else torch.device("cpu")


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_devices(config: TrainConfig | LanguageTrainConfig) -> None:
    """Refuses `devices` and `strategy` that do not go together, or were not launched."""
    devices, strategy = config.devices, config.strategy
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(f"{devices} devices must be launched by torchrun --nproc-per-node {devices}, got one process")
    if (devices > 1) != (strategy != "auto"):
        raise InputError(f"devices > 1 must come with a strategy other than auto, got {devices} and {strategy}")


def load_checkpoint(folder: str, kind: type[M]) -> tuple[M, list[StageRecord]]:
    """The model of a checkpoint, which must be a `kind`, and the stages behind it."""
    model = checkpoint.load(folder)
    if not isinstance(model, kind):
        raise InputError(f"checkpoint must be of a {kind.__name__}, got {type(model).__name__}: {folder}")
    return model, json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))["stages"]


def run_stages(
    model: M,
    config: TrainConfig | LanguageTrainConfig,
    output: Path,
    before: Sequence[StageRecord],
    stages: Mapping[str, StageRun[M]],
) -> Path:
    """Trains a model stage by stage after the stages `before`; returns the checkpoint's folder, `output/checkpoint`.

    The first process prints the parameters, and writes the checkpoint with the records of the stages, `training.json`.
    """
    folder, records = output / "checkpoint", list(before)
    if is_first_process():
        _print_parameters(model)
    for name, run in stages.items():
        trained = deepcopy(model) if config.strategy == "fsdp" else model

        def write(records: list[StageRecord], trained: M = trained) -> None:
            if trained is not model:  # of sharded parameters every process gathers the whole ones
                gather(trained, model)
            if is_first_process():
                checkpoint.save(cast(Any, model), config.model_dump(), folder)
                partial = folder / "training.json.partial"
                partial.write_text(json.dumps({"stages": records}, indent=1), encoding="utf-8")
                os.replace(partial, folder / "training.json")

        callback = CheckpointCallback(name, tuple(records), write)
        records.append(callback.finish(run(trained.train(), callback)))
        model.cpu()
    if is_first_process():
        print(f"checkpoint: {folder}", flush=True)
    return folder


def _print_parameters(model: Any) -> None:
    roles = model.parameters_by_role()
    rows = [(row["role"], f"{row['total']:,}", f"{row['trainable']:,}", row["modules"]) for row in roles]
    total, trained = (f"{sum(row[key] for row in roles):,}" for key in ("total", "trainable"))
    rows = [("role", "parameters", "trainable", ""), *rows, ("all", total, trained, "")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for role, count, learned, modules in rows:
        print(f"{role:{widths[0]}}  {count:>{widths[1]}}  {learned:>{widths[2]}}  {modules}".rstrip(), flush=True)


def fit(
    module: Stage,
    batches: Dataset[Any],
    validation: Dataset[Any] | list[Any],
    config: RunConfig,
    output: Path,
    name: str,
    *callbacks: L.Callback,
) -> L.Trainer:
    """Trains for the stage's steps with a progress bar; logs go to `output/logs/<name>`.

    `batches` has as many as all devices need, which take turns, in order: steps * accumulate * devices. Every device
    validates on all of `validation`. An `IterableDataset` has no end and shares itself out among devices; of one for
    validation `stage.validation_batches` are taken.
    """
    logs, stage, devices = output / "logs", module.stage, 1
    strategy: str | ModelParallelStrategy = "auto"
    if isinstance(config, TrainConfig | LanguageTrainConfig):
        strategy, devices = config.strategy, config.devices
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    elif strategy == "ddp" and module.sometimes_untrained:
        strategy = "ddp_find_unused_parameters_true"
    streamed, held_out_streamed = (isinstance(each, IterableDataset) for each in (batches, validation))
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        strategy=strategy,
        precision=precision(config),
        max_steps=stage.steps,
        max_epochs=1,
        accumulate_grad_batches=stage.accumulate,
        gradient_clip_val=stage.gradient_clip,
        limit_train_batches=stage.steps * stage.accumulate if streamed else 1.0,
        limit_val_batches=stage.validation_batches if held_out_streamed else 1.0,
        val_check_interval=min(stage.validate_every, stage.steps) * stage.accumulate,
        num_sanity_val_steps=0,
        logger=[CSVLogger(logs, name=name, version=""), TensorBoardLogger(logs, name=name, version="")],
        log_every_n_steps=min(10, stage.steps),
        callbacks=[ProgressBar(name), *callbacks],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rank, count = int(os.environ.get("RANK", 0)), stage.steps * stage.accumulate * devices
    own = range(rank, count, devices) if devices > 1 and not streamed else None
    workers, ahead = config.workers, 4 if config.workers else None
    loader = DataLoader(batches, batch_size=None, sampler=own, num_workers=workers, prefetch_factor=ahead)
    with warnings.catch_warnings():
        # Of libraries, not of the run: frozen parts are in evaluation mode, no output of a part is changed in place.
        for noise in ("does not have many workers", "LeafSpec", "in eval mode at the start", "returned a view tensor"):
            warnings.filterwarnings("ignore", message=f".*{noise}")
        trainer.fit(module, loader, DataLoader(cast("Dataset[Any]", validation), batch_size=None))
    return trainer


def of_all_processes(own: T) -> list[T]:
    """What each process passes; every process calls it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    each: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(each, own)
    return each


def all_skipped(skipped: Counter[str]) -> dict[str, int]:
    """What was wrong with each medium that any process left out, and how often it was asked for; printed once."""
    found = dict(sorted(sum(of_all_processes(skipped), Counter[str]()).items()))
    if found and is_first_process():
        first = list(found)[:_PRINTED]
        more = [f"and {len(found) - _PRINTED} more, see training.json"] if len(found) > _PRINTED else []
        heading = f"skipped {len(found)} media that cannot be read, {sum(found.values())} times:"
        print("\n".join([heading, *first, *more]), flush=True)
    return found
