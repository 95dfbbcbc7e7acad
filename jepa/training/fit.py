"""One Lightning fit, as every stage of every variant uses it, and the stages of a run."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from jepa import checkpoint
from jepa.errors import InputError
from jepa.processes import is_first_process, of_all_processes
from jepa.training.callbacks import ProgressBar, StageRecord
from jepa.training.configs import FREE, LanguageTrainConfig, Precision, RunConfig, TrainConfig
from jepa.training.loggers import loggers, own_callbacks
from jepa.training.modules import Stage
from jepa.training.resume import Run, Signals, StateIO, Stopped, ignore_signals, read_state, say
from jepa.training.saving import CheckpointCallback, StateCallback
from jepa.training.sharding import gather

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
StageRun: TypeAlias = Callable[[M, CheckpointCallback], StageRecord]
_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
_PRINTED = 20  # media that were left out


def on_gpu(config: RunConfig) -> bool:
    return config.accelerator not in ("cpu", "mps") and torch.cuda.is_available()


def precision(config: RunConfig) -> Precision:
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
    if config.accelerator == "mps":
        return torch.device("mps")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu(config) else torch.device("cpu")


def check_devices(config: TrainConfig | LanguageTrainConfig) -> None:
    """Refuses `devices`, `strategy` and `callbacks` that do not go together, or were not launched."""
    devices, strategy = config.processes, config.strategy
    if strategy == "fsdp" and any(isinstance(each, WeightAveraging) for each in own_callbacks(config.callbacks)):
        raise InputError("callbacks that average weights must have whole ones, got strategy fsdp")
    if config.accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("accelerator is mps, but no such device is available")
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        launched = f"launched by torchrun --nproc-per-node {config.devices}"
        raise InputError(f"{devices} devices must be {launched}, got one process")
    if (devices > 1) != (strategy != "auto"):
        raise InputError(f"devices > 1 must come with a strategy other than auto, got {devices} and {strategy}")


def load_checkpoint(folder: str, kind: type[M]) -> tuple[M, list[StageRecord]]:
    """The model of a checkpoint, which must be a `kind`, and the stages behind it."""
    model = checkpoint.load(folder)
    if not isinstance(model, kind):
        raise InputError(f"checkpoint must be of a {kind.__name__}, got {type(model).__name__}: {folder}")
    return model, checkpoint.read_stages(Path(folder))


def run_stages(
    model: M,
    config: TrainConfig | LanguageTrainConfig,
    output: Path,
    before: Sequence[StageRecord],
    stages: Mapping[str, StageRun[M]],
) -> Path:
    """Trains a model stage by stage after the stages `before`; returns the checkpoint's folder, `output/checkpoint`.

    The first process prints the parameters, and writes the checkpoint with the records of the stages, `training.json`.
    Stages that `resume` finds finished are not trained again.

    Raises:
        Stopped: a signal ended training; what it goes on from is written.
    """
    folder = output / "checkpoint"
    if config.resume and config.checkpoint is not None and Path(config.checkpoint).resolve() == folder.resolve():
        raise InputError(f"resume must be false where checkpoint is the run's own, got {config.resume}: {folder}")
    run = Run(config, output, list(stages))
    if run.finished:
        checkpoint.load_weights(model, folder)
    if is_first_process():
        _print_parameters(model)
    with Signals() as signals:
        try:
            _run_stages(model, config, folder, before, stages, run, signals)
        except Stopped as stopped:
            say(f"\n{stopped.message}")  # below the progress bar
            raise
    say(f"checkpoint: {folder}")
    return folder


def _run_stages(
    model: M,
    config: TrainConfig | LanguageTrainConfig,
    folder: Path,
    before: Sequence[StageRecord],
    stages: Mapping[str, StageRun[M]],
    run: Run,
    signals: Signals,
) -> None:
    for name in list(stages)[len(run.finished) :]:
        if run.finished:  # so that a stage is a function of the checkpoint before it
            L.seed_everything(config.seed, verbose=False)
        records = [*before, *run.finished]
        trained = deepcopy(model) if config.strategy == "fsdp" else model

        def write(records: list[StageRecord], trained: M = trained) -> None:
            if trained is not model:  # of sharded parameters every process gathers the whole ones
                gather(trained, model)
            if is_first_process():
                checkpoint.save(cast(Any, model), config.model_dump(exclude=set(FREE)), folder)
                partial = folder / "training.json.partial"
                partial.write_text(json.dumps({"stages": records}, indent=1), encoding="utf-8")
                os.replace(partial, folder / "training.json")

        state = StateCallback(run, name, config.saves, signals, requeue=config.resume == "auto")
        callback = CheckpointCallback(name, records, write, state)
        run.finish(callback.finish(stages[name](trained.train(), callback)))
        model.cpu()
        signals.stop(f"after stage {name}")


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
    checkpoints: CheckpointCallback | None = None,
) -> L.Trainer:
    """Trains for the stage's steps with a progress bar, from where the `checkpoints` left it on.

    Logs go to `output/logs/<name>`; those of another run are removed.

    `batches` has as many as all devices need, which take turns, in order: steps * accumulate * devices. Every device
    validates on all of `validation`. An `IterableDataset` has no end and shares itself out among devices; of one for
    validation `stage.validation_batches` are taken.
    """
    logs, stage, devices, processes, options = output / "logs", module.stage, 1, 1, config.trainer
    state = None if checkpoints is None else checkpoints.state
    bar = ProgressBar(name) if options.enable_progress_bar else None
    callbacks: list[L.Callback] = [each for each in (bar, checkpoints, state) if each is not None]
    callbacks += own_callbacks(config.callbacks)
    path, start = (None, 0) if state is None else (state.path, state.start)
    if path is None and is_first_process():
        shutil.rmtree(logs / name, ignore_errors=True)
    strategy: str | ModelParallelStrategy = "auto"
    if isinstance(config, TrainConfig | LanguageTrainConfig):
        strategy, devices, processes = config.strategy, config.devices, config.processes
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(processes, tensor_parallel_size=1, save_distributed_checkpoint=False)
    elif strategy == "ddp" and module.sometimes_untrained:
        strategy = "ddp_find_unused_parameters_true"
    streamed, held_out_streamed = (isinstance(each, IterableDataset) for each in (batches, validation))
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        strategy=strategy,
        precision=precision(config),
        max_steps=stage.steps,
        min_epochs=0,  # may stop early
        max_epochs=1,
        accumulate_grad_batches=stage.accumulate,
        gradient_clip_val=stage.gradient_clip,
        limit_train_batches=options.limit_train_batches or (stage.steps * stage.accumulate if streamed else 1.0),
        limit_val_batches=options.limit_val_batches or (stage.validation_batches if held_out_streamed else 1.0),
        val_check_interval=min(stage.validate_every, stage.steps) * stage.accumulate,
        num_sanity_val_steps=0,
        logger=loggers(config.logger, config.name, logs, name, None if path is None else read_state(path)),
        log_every_n_steps=min(options.log_every_n_steps, stage.steps),
        num_nodes=options.num_nodes,
        deterministic=options.deterministic,
        benchmark=options.benchmark,
        detect_anomaly=options.detect_anomaly,
        profiler=options.profiler and _PROFILERS[options.profiler](dirpath=logs / name, filename="profile"),
        gradient_clip_algorithm=options.gradient_clip_algorithm,
        enable_progress_bar=options.enable_progress_bar,
        callbacks=callbacks,
        plugins=[StateIO()],
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),  # of the user's own
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    done, sampler = start * stage.accumulate, None
    if streamed:
        cast(Any, batches).start = done
    else:
        sampler = _Rest(range(int(os.environ.get("RANK", 0)), len(cast(Any, batches)), processes), done)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=ignore_signals,
    )
    with warnings.catch_warnings():
        # Of libraries, not of the run: frozen parts are in evaluation mode, no output of a part is changed in place,
        # weights that are averaged are whole, the loader begins where a state left off, as do the logs.
        for noise in (
            "does not have many workers",
            "LeafSpec",
            "in eval mode at the start",
            "returned a view tensor",
            "You're using the WeightAveraging callback with a model that overrides",
            "resuming from a checkpoint that ended before the epoch ended",
            "logs directory .* not empty",
        ):
            warnings.filterwarnings("ignore", message=f".*{noise}")
        held_out = DataLoader(cast("Dataset[Any]", validation), batch_size=None)
        signals = Signals() if state is None else state.signals  # new ones handle nothing
        signals.stepping = True  # an exception while workers are forked would be lost
        try:
            trainer.fit(module, loader, held_out, ckpt_path=path, weights_only=True)
        except RuntimeError as error:
            if "Early stopping conditioned" in str(error):
                raise InputError(f"callbacks: {' '.join(str(error).split())}") from None
            raise
        finally:
            signals.stepping = False
            signals.listen()
    return trainer


class _Rest(Sampler[int]):
    """The numbers of a process's batches, given out from the one at `start` on, and the length of all of them."""

    def __init__(self, numbers: range, start: int) -> None:
        self.numbers, self.start = numbers, start

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers[self.start :])

    def __len__(self) -> int:
        return len(self.numbers)


def all_skipped(skipped: Counter[str]) -> dict[str, int]:
    """What was wrong with each medium that any process left out, and how often it was asked for; printed once."""
    found = dict(sorted(sum(of_all_processes(skipped), Counter[str]()).items()))
    if found and is_first_process():
        first = list(found)[:_PRINTED]
        more = [f"and {len(found) - _PRINTED} more, see training.json"] if len(found) > _PRINTED else []
        heading = f"skipped {len(found)} media that cannot be read, {sum(found.values())} times:"
        print("\n".join([heading, *first, *more]), flush=True)
    return found
