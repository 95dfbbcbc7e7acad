"""A VL-JEPA that `jepa export` wrote, run by onnxruntime: NumPy in and out, without torch.

B clips or texts, M slots, T slots of a window, F frames, S pixels a side, P states a slot, N states, D width,
E embedding dimensions, L tokens, H heads, V vocabulary. `docs/export.md` describes the files.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa.errors import InputError, check_int, needs_extra
from jepa.operations import OperationLedger
from jepa.selective import Decoded, SelectiveEncoding, WindowStream, slots_of

FORMAT = "jepa.export/1"
MANIFEST = "export.json"
_DENSE = 0.75  # of a batch: with fewer rows that go on, those that have ended are taken out of it


class Framing(NamedTuple):
    """What the X-Encoder takes: slots of `tubelet` frames, `size` pixels a side.

    >>> Framing(size=64, tubelet=4).tubelet
    4
    """

    size: int
    tubelet: int


class ExportedModel(ABC):
    """The roles of an exported VL-JEPA, whatever runs their graphs: a subclass says how, by `run`.

    It is a decoder for `SelectiveDecoder`, which gives it arrays. Texts, calls and FLOPs are those of the model that
    was exported, but for rounding.

    Args:
        folder: what `jepa export` wrote.
        int8: with the quantised graphs.

    Raises:
        InputError: the folder holds no export, one of another format, or none in int8; or tokenizers is not installed.
    """

    takes_arrays = True
    suffix: str  # of the graphs' files

    def __init__(self, folder: str | os.PathLike[str], *, int8: bool = False) -> None:
        self.folder = Path(folder)
        about = _read_manifest(self.folder / MANIFEST)
        if about["graphs"] != self.suffix:
            raise InputError(f"{self.folder} must hold graphs of {self.suffix}, got {about['graphs']}")
        if int8 and not about["int8"]:
            raise InputError(f"{self.folder} has no int8 graphs: export it with int8=true")
        self.about, self._end = about, f".int8.{self.suffix}" if int8 else f".{self.suffix}"
        self.frames, self.fps = int(about["frames"]), int(about["fps"])
        self.x_encoder = Framing(int(about["size"]), int(about["tubelet"]))
        self._tokenizers = {role: _Tokens(self.folder, each) for role, each in about["tokenizers"].items()}

    @abstractmethod
    def run(self, graph: str, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of a graph of `export.json`, given its inputs in their order."""

    @property
    def window(self) -> float:
        """Seconds."""
        return self.frames / self.fps

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """X-Encoder: (B, F, S, S, 3) uint8 -> states (B, N, D). With F = 1 pictures are repeated to fill a window."""
        size, tubelet = self.x_encoder
        if frames.ndim != 5 or frames.shape[2:] != (size, size, 3) or frames.dtype != np.uint8:
            raise InputError(f"frames must be (B, F, {size}, {size}, 3) uint8, got {frames.shape} {frames.dtype}")
        if frames.shape[1] == 1 and not self.about["takes_images"]:
            frames = np.repeat(frames, self.frames, axis=1)
        if not self.about["slots"]:
            return self.run("x_encoder", np.ascontiguousarray(frames))[0]
        if frames.shape[1] % tubelet:
            raise InputError(f"the number of frames must be a multiple of tubelet {tubelet}, got {frames.shape[1]}")
        slots = self.run("x_encoder", frames.reshape(-1, tubelet, size, size, 3))[0]
        return self.run("x_encoder_time", slots.reshape(len(frames), -1, *slots.shape[1:]))[0]

    def predict(self, states: np.ndarray, queries: Sequence[str]) -> np.ndarray:
        """Predictor: states (B, N, D) and B queries -> predicted embeddings (B, E), L2-normalised."""
        return self.run("predictor", states, *self._tokenizers["predictor"].encode(queries))[0]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Y-Encoder: B texts -> embeddings (B, E), L2-normalised."""
        prompt, lower = self.about["prompt"], self.about["lower"]
        given = [(prompt + text).lower() if lower else prompt + text for text in texts]
        return self.run("y_encoder", *self._tokenizers["y_encoder"].encode(given))[0]

    def decode(self, latents: np.ndarray, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Y-Decoder: embeddings (B, E) -> greedy texts; each token, the end included, is a forward pass."""
        latents = np.ascontiguousarray(latents, dtype=np.float32)
        if latents.ndim != 2 or latents.shape[1] != self.about["embedding_dim"]:
            raise InputError(f"latents must be (B, {self.about['embedding_dim']}), got {latents.shape}")
        decoding, end = self.about["decoding"], self._tokenizers["y_decoder"].end
        rows = self._generate(latents, end)
        counts = [min(len(row) + 1, decoding["max_length"]) for row in rows]
        read, costs = decoding["weight_bytes"], decoding["costs"]
        return [
            Decoded(text, n, n, costs["flops"][n - 1], n * read, costs["cache_bytes"][n - 1])
            for text, n in zip(self._tokenizers["y_decoder"].decode(rows), counts, strict=True)
        ]

    def _generate(self, latents: np.ndarray, end: int) -> list[list[int]]:
        """Greedy tokens of each embedding (B, E), the end token left out; a text stops at `max_length` tokens."""
        decoding, count = self.about["decoding"], len(latents)
        keys = values = np.zeros((decoding["depth"], count, decoding["heads"], 0, decoding["head_dim"]), np.float32)
        rows, given, ids = np.arange(count), latents[:, None], np.zeros((count, 0), np.int64)
        found = np.full((count, decoding["max_length"]), end)
        for place in range(decoding["max_length"]):
            logits, keys, values = self.run("y_decoder", given, ids, keys, values)
            found[rows, place] = chosen = logits.argmax(-1)
            going = (found[rows, : place + 1] != end).all(1)
            if not going.any():
                break
            if going.sum() <= _DENSE * len(rows):
                rows, chosen = rows[going], chosen[going]
                keys, values = keys[:, going], values[:, going]
            given, ids = np.zeros((len(rows), 0, latents.shape[1]), np.float32), chosen[:, None]
        return [row[: row.index(end)] if end in row else row for row in found.tolist()]

    def stream(
        self,
        frames: Iterable[np.ndarray],
        step_rate: float,
        query: str,
        ledger: OperationLedger | None = None,
        selection: SelectiveEncoding | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `VLJEPA.stream`. Windows share their slots; the ledger counts encoder and predictor calls and FLOPs."""
        stream = WindowStream(self, step_rate, ledger, selection)
        flops = self._query_flops(query)
        for chunk in frames:
            stream.push(chunk)
            if stream.due:
                states = self._encode_due(stream)
                with stream.ledger.timed("predictor"):
                    latents = self.predict(states, [query] * len(states))
                self._count(stream.ledger, "predictor", len(states), flops)
                yield latents, stream.times(stream.due)
            stream.forget()

    slots = slots_of

    def _encode_due(self, stream: WindowStream) -> np.ndarray:
        """States (T, N, D) of the windows of the steps that are due."""
        windows = [stream.slots(step) for step in stream.due]
        if not self.about["slots"]:
            pixels = [
                stream.pixels(window).reshape(1, self.frames, *[self.x_encoder.size] * 2, 3) for window in windows
            ]
            with stream.ledger.timed("encoder"):
                states = np.concatenate([self.encode(each) for each in pixels])
            self._count(stream.ledger, "encoder", len(windows), self.about["flops"]["encoder"])
            return states
        if new := sorted({slot for window in windows for slot in window} - stream.kept.keys()):
            with stream.ledger.timed("encoder"):
                encoded = self.run("x_encoder", stream.pixels(new))[0]
            self._count(stream.ledger, "encoder", len(new), self.about["flops"]["encoder"])
            stream.kept.update(zip(new, encoded, strict=True))
        slots = np.stack([np.stack([stream.kept[slot] for slot in window]) for window in windows])
        return self.run("x_encoder_time", slots)[0]

    def _query_flops(self, query: str) -> int:
        """FLOPs of predicting one embedding under a query; `InputError` if it is longer than any that was counted."""
        counts, length = self.about["flops"]["predictor"], self._tokenizers["predictor"].encode([query])[0].shape[1]
        if length > len(counts):
            raise InputError(f"query must have at most {len(counts)} tokens, got {length}: {query!r}")
        return int(counts[length - 1])

    def _count(self, ledger: OperationLedger, part: str, calls: int, flops: int) -> None:
        read = self.about["weight_bytes"][part]
        ledger.count(part, calls=calls, forward_passes=calls, flops=calls * flops, weight_bytes=calls * read)


class OnnxModel(ExportedModel):
    """Runs on onnxruntime, on the CPU: `pip install 'selective-jepa[runtime]'`.

    Args:
        folder: what `jepa export format=onnx` wrote.
        int8: with the quantised graphs.
        threads: of onnxruntime, >= 1; None: one a core.

    Raises:
        InputError: as `ExportedModel`, or onnxruntime is not installed.
    """

    suffix = "onnx"

    def __init__(self, folder: str | os.PathLike[str], *, int8: bool = False, threads: int | None = None) -> None:
        super().__init__(folder, int8=int8)
        self.threads = None if threads is None else check_int("threads", threads, 1)
        self._sessions: dict[str, tuple[Any, list[str]]] = {}

    def run(self, graph: str, *inputs: np.ndarray) -> list[np.ndarray]:
        if graph not in self._sessions:
            self._sessions[graph] = self._open(self.folder / f"{graph}{self._end}")
        session, names = self._sessions[graph]
        found: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
        return found

    def _open(self, path: Path) -> tuple[Any, list[str]]:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no class in common
            raise InputError(f"{path} cannot be opened: {' '.join(str(error).split())[:300]}") from error
        return session, [each.name for each in session.get_inputs()]


def import_onnxruntime() -> Any:
    """onnxruntime, told to keep its use to itself: else it reports it over the network and writes into `~/.cache`.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    with needs_extra("runtime"):
        import onnxruntime
    return onnxruntime


class _Tokens:
    """The tokenizer of a role: texts to ids and masks, and back."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        with needs_extra("runtime"):
            from tokenizers import Tokenizer
        self._tokenizer = Tokenizer.from_file(str(folder / about["file"]))
        self._tokenizer.encode_special_tokens = True  # `<eos>` within a text is plain text
        self._pad, self.end, self._most = about["pad"], about["end"], about["max_length"]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Right-padded ids (B, L) int64 and their mask (B, L), true at real tokens."""
        rows = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(row) for row in rows])
        if lengths.max() > self._most:
            worst = texts[int(lengths.argmax())]
            raise InputError(f"a text must have at most {self._most} tokens, got {lengths.max()}: {worst[:60]!r}")
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._pad, dtype=np.int64)
        ids[mask] = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
        return ids, mask

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of id rows; special tokens are dropped."""
        return [text.strip() for text in self._tokenizer.decode_batch([list(row) for row in rows])]


def _read_manifest(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"export not found: {path}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT!r}, got {found!r}")
    return dict(about)
