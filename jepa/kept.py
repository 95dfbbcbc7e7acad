"""A long command's folder: it is one command's at a time, and what was computed is kept for the next one to go on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from jepa.errors import InputError
from jepa.processes import is_first_process

T = TypeVar("T")
_DTYPES = [type(np.dtype(each)) for each in (np.float32, np.float64, np.int64, np.bool_)]
_MADE_BY = [each.__reduce__()[0] for each in (np.zeros(1), np.float64(0))]  # numpy's arrays and numbers


@contextmanager
def held(folder: Path, file: str = ".lock") -> Iterator[None]:
    """The first process holds a folder until the block or the process ends, however it does.

    Raises:
        InputError: another process holds it.
    """
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: children that outlive it hold nothing
        except BlockingIOError:
            lock.seek(0)
            raise InputError(f"{folder}: must be of one run at a time, in use by process {lock.read()}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class Kept:
    """Values in `output/.kept`, a file each, of one digest of what they depend on: of this package's code, too.

    A finished command removes them unless they are `lasting`; one with another digest does in any case. Only tensors,
    arrays, plain data and the `kinds` of objects that are given are read.

    Args:
        depends_on: plain data; a `Path` stands for the content of the file.

    Raises:
        InputError: on entering, another command holds the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Kept(Path(folder), {"seed": 0}) as kept:
    ...         kept.get("sum", lambda: 2 + 2), kept.get("sum", lambda: 1 / 0)
    ...     Kept(Path(folder), {"seed": 0}).finished
    (4, 4)
    True
    """

    def __init__(self, output: Path, depends_on: object, kinds: Sequence[type] = (), lasting: bool = False) -> None:
        depends_on = [_code(), depends_on]
        self.lasting, self.folder = lasting, output / ".kept"
        self._kinds: list[Any] = [*kinds, bytes, np.ndarray, np.dtype, *_DTYPES, *_MADE_BY]
        self.digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=_digest).encode()).hexdigest()[:16]
        self._held = held(self.folder)

    @property
    def finished(self) -> bool:
        """Whether a command with the same digest was the last to finish."""
        done = self.folder / "finished"
        return done.is_file() and done.read_text() == self.digest

    def get(self, name: str, compute: Callable[[], T]) -> T:
        """The value that is kept under a name, or the one that is computed, and kept from then on."""
        if (found := self.find(name)) is None:
            self.put(name, found := compute())
        value: T = found
        return value

    def find(self, name: str) -> Any:
        """The value that is kept under a name; None without a whole one."""
        try:
            with torch.serialization.safe_globals(self._kinds):
                return torch.load(self._path(name), weights_only=True)
        except Exception:  # torch raises whatever its reader of pickles stumbles over
            return None

    def put(self, name: str, value: object) -> None:
        """Keep a value."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, partial := path.with_suffix(f".{os.getpid()}.partial"))
        os.replace(partial, path)

    def _path(self, name: str) -> Path:
        return self.folder / self.digest / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"

    def __enter__(self) -> Kept:
        self._held.__enter__()
        if is_first_process():
            (self.folder / "finished").unlink(missing_ok=True)
            for other in self.folder.iterdir():
                if other.is_dir() and other.name != self.digest:
                    shutil.rmtree(other, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is None and is_first_process():
            (self.folder / "finished").write_text(self.digest)
            if not self.lasting:
                shutil.rmtree(self.folder / self.digest, ignore_errors=True)
        self._held.__exit__(kind, error, trace)


class KeptInMemory(Kept):
    """Values without a folder, for what no command may go on from."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def find(self, name: str) -> Any:
        return self._values.get(name)

    def put(self, name: str, value: object) -> None:
        self._values[name] = value


@cache
def _code() -> list[str]:
    """Digests of the package's files, as they were when they were first asked for: of the code that runs."""
    return [_digest(path) for path in sorted(Path(__file__).parent.rglob("*.py"))]


def _digest(value: object) -> str:
    """Of a file's content."""
    found = hashlib.sha256()
    with Path(str(value)).open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
