"""`jepa report`: results of the evaluations in a folder, and the pages that show them. No encoder runs.

Of results that are there already it makes the pages again, holds them to a bar, or shows them side by side.

A kind of document is a line of `KINDS`. Modules that do the work are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from jepa import checkpoint
from jepa.config import ReportConfig
from jepa.errors import InputError
from jepa.evaluation.provenance import announce, code_version, describe_device, now
from jepa.results import Document, Requirement, Setting, StreamEvaluation, StreamResults, is_kind, read_document
from jepa.results.documents import EncodedStreams, Event, Reference, StreamCounts, SweepOrigin, Timeline

if TYPE_CHECKING:
    from jepa.selective import Decoder


class Kind(NamedTuple):
    """A kind of results document, each part as ``module:name``.

    `report` makes blocks of a document. `make` takes a folder of evaluations and the configuration, and returns the
    document, or None where the folder holds other evaluations.
    """

    document: str
    report: str
    make: str


KINDS = (
    Kind("jepa.results:StreamResults", "jepa.report.streams:report", "jepa.evaluation.report:stream_results"),
    Kind("jepa.results:AnswerResults", "jepa.report.answers:report", "jepa.evaluation.arms:folder_results"),
)


def report(config: ReportConfig, kinds: Sequence[Kind] = KINDS) -> dict[str, Path]:
    """Runs a `ReportConfig`, prints a summary, and returns the paths of the files written.

    Args:
        config: names evaluations to analyse, results to show again, or results to compare.
        kinds: the kinds of documents, tried in this order.

    Raises:
        InputError: for bad input.
        NotMetError: once all files are written, if what `fail_under` asks does not hold.
    """
    given = [key for key in ("evaluation", "results", "compare") if getattr(config, key) is not None]
    if len(given) != 1:
        raise InputError(f"give one of evaluation=, results= and compare=, got {' and '.join(given) or 'none'}")
    if config.compare is not None:
        return _compare(config, config.compare)
    required = None if config.fail_under is None else Requirement.parse(config.fail_under)
    if config.results is not None:
        document = read_document(config.results, *(resolve_name(kind.document) for kind in kinds))
        output = None if config.output is None else Path(config.output)
    else:
        folder = Path(str(config.evaluation))
        made = (resolve_name(kind.make)(folder, config) for kind in kinds)
        document = next((each for each in made if each is not None), None)
        if document is None:
            raise InputError(f"evaluation not found: {folder / StreamEvaluation.file_name}")
        beside = folder.parent if (folder / StreamEvaluation.file_name).is_file() else folder
        output = Path(config.output) if config.output else beside
    blocks = next(kind.report for kind in kinds if isinstance(document, resolve_name(kind.document)))
    paths = _shown(document, resolve_name(blocks)(document), output)
    if required:
        print(required.verdict(document), flush=True)
    return paths


def _compare(config: ReportConfig, compared: Sequence[str]) -> dict[str, Path]:
    """Runs side by side, printed and written."""
    if config.fail_under is not None:
        raise InputError("fail_under holds one run to a bar: give evaluation= or results=, not compare=")
    if len(set(compared)) < max(2, len(compared)):
        raise InputError(f"compare must name two or more results, each once, got {compared}")
    runs = {path: read_document(path, StreamResults) for path in compared}
    blocks = resolve_name("jepa.report.compare:report")(runs)
    return _shown(None, blocks, config.output or "outputs/comparison", "comparison")


def _shown(document: Document | None, blocks: Any, output: str | Path | None, stem: str = "report") -> dict[str, Path]:
    """Prints the summary of a report; writes it, with its document, into the folder `output`, if there is one."""
    render = resolve_name("jepa.report.render")
    paths: dict[str, Path] = render.write_report(document, blocks, output, stem) if output else {}
    announce(render.terminal(blocks), paths)
    return paths


def stream_results(folder: Path, config: ReportConfig) -> StreamResults | None:
    """Policies swept over the saved latents of an evaluation; None where the folder holds none of a VL-JEPA's streams.

    Raises:
        InputError: a broken evaluation, or bad policies, references or requirements.
    """
    path = folder / StreamEvaluation.file_name
    if not is_kind(path, StreamEvaluation):
        return None
    evaluation: StreamEvaluation = read_document(path, StreamEvaluation)
    if config.fail_under is not None:
        Requirement.parse(config.fail_under).check("streams", evaluation.settings)
    model = checkpoint.load(Path(config.checkpoint or folder / evaluation.checkpoint))
    return sweep_evaluation(evaluation, folder, model, config)


def sweep_evaluation(
    evaluation: StreamEvaluation, folder: Path, decoder: Decoder, config: ReportConfig
) -> StreamResults:
    """Policies swept over the latents that an evaluation saved in its folder. The decoder is on the CPU."""
    from jepa.evaluation.streams import SPLITS, load_streams
    from jepa.evaluation.sweep import sweep_families, sweep_setting

    families, device = sweep_families(config.policies), describe_device("cpu")
    references = [Reference.model_validate(each, from_attributes=True) for each in config.references]

    def swept(name: str, encoded: EncodedStreams) -> Setting:
        streams = {split: load_streams(folder / name / split) for split in SPLITS}
        sweep, emissions = sweep_setting(
            streams,
            decoder,
            families,
            references,
            latent_delay=evaluation.latent_delay,
            name=name,
            **{key: getattr(config, key) for key in ("confidence", "seed", "tolerances", "workers")},
        )
        first, counts = streams["test"].records[0], {split: len(each.records) for split, each in streams.items()}
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
