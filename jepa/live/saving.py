"""A session saved as an evaluation: a folder that `jepa report` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa.build import Node
from jepa.data.json_lines import JsonObject
from jepa.data.records import Event, StreamRecord
from jepa.data.world import World
from jepa.errors import InputError
from jepa.evaluation.provenance import evaluated
from jepa.evaluation.streams import EncodedStream, save_streams
from jepa.evaluation.tasks import score_tasks
from jepa.evaluation.videos import training_record
from jepa.live.session import KeptStep, Session
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger, PartCount
from jepa.results import StreamEvaluation
from jepa.results.documents import Decode, EncodedStreams, LiveSession, Scores

_PARTS = 8  # stretches of the stream, in turn to calibrate and to test on
_LEAST = 4  # steps of one
_BATCH = 64


@dataclass
class Saver:
    """Writes sessions of one checkpoint, which was `trained` so; scores it when it is first asked to, if need be.

    Args:
        model, device: the model and where it is.
        checkpoint: its folder.
        trained: the configuration of its training.
        world: that it was trained on.
        config: of the server, as plain data.
        candidates: that the checkpoint is scored on.
    """

    model: VLJEPA
    device: str
    checkpoint: Path
    trained: Node
    world: World
    config: JsonObject
    candidates: int = 240
    _scores: Scores | None = None

    def save(self, session: Session, folder: Path) -> Path:
        """Writes what the session has kept of its stream, as streams of the setting "live", and its ledger.

        The stream is cut into 8 stretches, in turn of the calibration and the test split. Its annotations are the
        events of the source; where it knows none, the texts that the decoder writes at every step, which are counted
        nowhere: quality is then agreement with these.

        Raises:
            InputError: too few steps, or no record of training beside the checkpoint.
        """
        with session.lock:
            kept, ledger = list(session.kept), OperationLedger.from_dict(session.ledger.to_dict())
            emissions = list(session.emissions)
            thumbnails, described = session.thumbnails(), session.described()
        if len(kept) < _PARTS * _LEAST:
            raise InputError(f"a session must have {_PARTS * _LEAST} steps to be saved, got {len(kept)}")
        training = training_record(self.checkpoint)
        truth = list(session.source.events())
        events = truth or self._told(kept)
        parts = [kept[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(kept)), _PARTS)]
        streams = [
            self._stream(f"{session.id}-{i}", part, events, ledger, session.windows) for i, part in enumerate(parts)
        ]
        for split, first in (("calibration", 0), ("test", 1)):
            save_streams(streams[first::2], folder / "live" / split)
        what = "its events" if truth else "the decoder's own texts at every step: quality is agreement with them"
        duration = float(np.mean([stream.record.duration for stream in streams[1::2]]))
        document = evaluated(
            StreamEvaluation,
            *(self.checkpoint, folder, self.trained, self.device, self.model),
            config={"train": self.trained, "live": self.config},
            latent_delay=self.model.window / 2,
            processes=1,
            training=training,
            scores=self._scored(),
            settings={
                "live": EncodedStreams(
                    description=f"a session of {session.source.name}, asked {session.query!r}; annotated: {what}",
                    step_rate_hz=described["step_rate_hz"],
                    seconds_each=duration,
                    broken={},
                    thumbnails=thumbnails,
                )
            },
            session=LiveSession(
                source=session.source.name,
                query=session.query,
                policy=described["settings"]["policy"],
                value=described["settings"]["threshold"],
                frames_taken=session.mailbox.taken,
                frames_dropped=session.mailbox.dropped,
                ledger=ledger,
                emissions=tuple(Decode(**asdict(emission)) for emission in emissions),
            ),
        )
        document.save(folder)
        return folder

    def _told(self, kept: Sequence[KeptStep]) -> list[Event]:
        """What the decoder says at every step, equal texts in a row as one event."""
        latents = torch.from_numpy(np.stack([step.latent for step in kept]))
        texts = [decoded.text for batch in latents.split(256) for decoded in self.model.decode(batch)]
        begins = [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]
        ends = [*begins[1:], len(texts)]
        return [Event(kept[a].time, kept[b - 1].time, texts[a]) for a, b in zip(begins, ends, strict=True)]

    def _stream(
        self, name: str, steps: Sequence[KeptStep], events: Sequence[Event], ledger: OperationLedger, windows: Any
    ) -> EncodedStream:
        """A stretch of the stream on a clock of its own, and what encoding it took: its calls at their mean cost."""
        begin, half = steps[0].time, self.model.window / 2
        times = np.array([step.time for step in steps]) - begin + half
        duration = float(times[-1]) + half
        inside = [
            replace(e, start=max(0.0, e.start - begin + half), end=min(duration, e.end - begin + half))
            for e in events
            if e.end > begin - half and e.start < begin - half + duration
        ]
        own = OperationLedger()
        own.stream(duration)
        calls = {"encoder": sum(step.encoder_calls for step in steps), "predictor": len(steps)}
        for part, count in (calls | {"detector": calls["encoder"]}).items():
            whole = getattr(ledger, part)
            share = count / max(1, whole.calls)
            exact = {key: round(getattr(whole, key) * share) for key in ("forward_passes", "flops", "weight_bytes")}
            own.count(part, calls=count, seconds=whole.seconds * share, **exact)
        return EncodedStream(
            StreamRecord(name, duration, tuple(inside)),
            np.stack([step.latent for step in steps]),
            times,
            own,
            np.array([step.change for step in steps], dtype=np.float32),
            np.stack([step.state for step in steps]),
            windows.hop,
            windows.length,
            PartCount(calls=len(steps), flops=sum(step.summary_flops for step in steps)),
        )

    def _scored(self) -> Scores:
        if self._scores is None:
            with torch.no_grad():
                self._scores = score_tasks(self.model, self.world, int(self.trained["seed"]), self.candidates, _BATCH)
        return self._scores
