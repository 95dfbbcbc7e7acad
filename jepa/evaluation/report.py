"""What `jepa report` shows: results of the evaluations in a folder, or results that are there. No encoder runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa import checkpoint
from jepa.config import ReportConfig
from jepa.errors import InputError
from jepa.evaluation.provenance import code_version, describe_device, now
from jepa.results import Document, Requirement, Setting, StreamEvaluation, StreamResults, is_kind, read_document
from jepa.results.documents import EncodedStreams, Event, StreamCounts, SweepOrigin, Timeline

if TYPE_CHECKING:
    from jepa.selective import Decoder

Make = Callable[[Path, ReportConfig], Document | None]  # of a folder; None where it holds other evaluations


def results_of(
    config: ReportConfig, kinds: Iterable[tuple[Make, type[Document]]]
) -> tuple[Any, Path | None, Requirement | None]:
    """The document that the configuration names, the folder that it goes to, and what `fail_under` asks of it.

    Raises:
        InputError: for bad input, or a document that has not what `fail_under` asks.
    """
    given = [key for key in ("evaluation", "results") if getattr(config, key) is not None]
    if len(given) != 1:
        raise InputError(f"give one of evaluation=, results= and compare=, got {' and '.join(given) or 'none'}")
    required = None if config.fail_under is None else Requirement.parse(config.fail_under)
    output = None if config.output is None else Path(config.output)
    if config.results is not None:
        document = read_document(config.results, *(kind for _, kind in kinds))
    else:
        folder = Path(str(config.evaluation))
        path = folder / StreamEvaluation.file_name
        document = next((found for make, _ in kinds if (found := make(folder, config)) is not None), None)
        if document is None:
            raise InputError(f"evaluation not found: {path}")
        output = output or (folder.parent if path.is_file() else folder)
    if required is not None:
        required.check_document(document)
    return document, output, required


def compared(config: ReportConfig) -> dict[str, StreamResults]:
    """The results that `compare` names, by path."""
    paths = config.compare or []
    if config.evaluation is not None or config.results is not None or config.fail_under is not None:
        raise InputError("compare= must stand without evaluation=, results= and fail_under=, which are of one run")
    if len(set(paths)) < max(2, len(paths)):
        raise InputError(f"compare must name two or more results, each once, got {paths}")
    return {path: read_document(path, StreamResults) for path in paths}


def stream_results(folder: Path, config: ReportConfig) -> StreamResults | None:
    """Policies swept over the saved latents of an evaluation; None where the folder holds none of a VL-JEPA's streams.

    Raises:
        InputError: a broken evaluation, or bad policies, references or requirements.
    """
    path = folder / StreamEvaluation.file_name
    if not is_kind(path, StreamEvaluation):
        return None
    evaluation: StreamEvaluation = read_document(path, StreamEvaluation)
    if config.fail_under is not None:  # before the sweep
        Requirement.parse(config.fail_under).check("streams", evaluation.settings)
    model = checkpoint.load(Path(config.checkpoint or folder / evaluation.checkpoint))
    return sweep_evaluation(evaluation, folder, model, config)


def sweep_evaluation(
    evaluation: StreamEvaluation, folder: Path, decoder: Decoder, config: ReportConfig
) -> StreamResults:
    """Policies swept over the latents that an evaluation saved in its folder. The decoder is on the CPU."""
    from jepa.evaluation.streams import SPLITS, load_streams
    from jepa.evaluation.sweep import sweep_setting

    device = describe_device("cpu")

    def swept(name: str, encoded: EncodedStreams) -> Setting:
        streams = {split: load_streams(folder / name / split) for split in SPLITS}
        sweep, emissions = sweep_setting(
            streams,
            decoder,
            config,
            latent_delay=evaluation.latent_delay,
            name=name,
            tolerances=config.tolerances,
        )
        first, counts = streams["test"][0].record, {split: len(each) for split, each in streams.items()}
        return Setting(
            **dict(sweep),
            description=encoded.description,
            step_rate_hz=encoded.step_rate_hz,
            streams=StreamCounts(**counts, seconds_each=encoded.seconds_each),
            timeline=Timeline(
                video_id=first.video_id,
                duration=first.duration,
                thumbnails=encoded.thumbnails,
                events=tuple(Event(start=event.start, end=event.end, text=event.text) for event in first.events),
                decodes=emissions,
            ),
            one_device=device == evaluation.device,
        )

    common = {"created", "name", "seed", "code", "libraries", "device", "parameters", "training", "scores"}
    return StreamResults(
        **{key: value for key, value in evaluation if key in common},
        config={**evaluation.config, "report": config.model_dump()},
        settings={name: swept(name, encoded) for name, encoded in evaluation.settings.items()},
        sweep=SweepOrigin(created=now(), code=code_version(), device=device),
    )
