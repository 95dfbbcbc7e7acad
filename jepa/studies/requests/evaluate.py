"""Run one of the two request studies on a checkpoint, and write its report."""

from __future__ import annotations

from pathlib import Path

from jepa import checkpoint
from jepa.config import AnswersConfig, EvaluateConfig, validate
from jepa.errors import InputError
from jepa.evaluation import provenance
from jepa.evaluation.answers import load_language_model
from jepa.evaluation.generation import drafter_of
from jepa.evaluation.run import splits_of
from jepa.models.drafts import packed
from jepa.report.render import terminal, write_report
from jepa.studies.configs import REQUESTS_CONFIGS, TypingConfig
from jepa.studies.requests.recurring import evaluate_recurring
from jepa.studies.requests.report import report
from jepa.studies.requests.results import RecurringResults, RequestResults, TypingResults
from jepa.studies.requests.typed import evaluate_typing


def run(config: EvaluateConfig) -> dict[str, Path]:
    """The study that `config.requests` chooses; returns the files written, by name.

    They go to `config.output`, by default `requests_<kind>` beside the checkpoint. Keys of `config.data` replace those
    of the training. Raises InputError for settings, a checkpoint or data that the study cannot have.
    """
    folder, node = Path(config.checkpoint), config.requests or {}
    trained, kind = checkpoint.read_config(folder), node.get("kind")
    if kind not in REQUESTS_CONFIGS:
        raise InputError(f"requests.kind must be one of {', '.join(REQUESTS_CONFIGS)}, got {kind!r}")
    settings = validate(node, REQUESTS_CONFIGS[kind], "requests")
    splits = splits_of(trained, config)
    device = provenance.device_of(config.accelerator)
    model = load_language_model(folder, device)
    chosen = {**trained.get("answers", {}), **config.answers}
    with packed(model):
        drafter = drafter_of(model, validate(chosen, AnswersConfig, "answers"), splits)
        if isinstance(settings, TypingConfig):
            control = None if settings.control is None else load_language_model(Path(settings.control), device)
            found: TypingResults | RecurringResults = evaluate_typing(
                model, control, splits, settings, config.seed, drafter
            )
        else:
            found = evaluate_recurring(model, splits, settings, config.seed, drafter)
    document = RequestResults(
        created=provenance.now(),
        name=f"{trained['name']}, {trained['arm']}, seed {trained['seed']}",
        results=found,
        code=provenance.code_version(),
        libraries=provenance.library_versions(),
        device=provenance.describe_device(device),
        config={"train": trained, "requests": settings.model_dump(mode="json"), "answers": chosen, "seed": config.seed},
    )
    page = report(document)
    files = write_report(document, page, Path(config.output or folder.parent / f"requests_{kind}"))
    provenance.announce(terminal(page), files)
    return files
