"""Broken and hostile files for every reader: each must give a value or an `InputError`, soon, in little memory.

    python scripts/fuzz.py [--quick | --inputs 100000 | --minutes 60] [--seed 0] [--readers manifest,shard]
    python scripts/fuzz.py --replay outputs/fuzz/manifest-1f0c2a9b.bin

Whole files (made as the tests make them, and the real data where it is there) are changed in their bytes, and in the
values, keys and members that they hold. With atheris installed, its coverage guides the search; without it, the seed
alone decides. Each reader runs in a process of its own. A finding is an exception other than `InputError`, more than
10 s or 2 GiB, a death, a file written outside the folder, a program started or a socket opened. It is kept as a file
that --replay reads again. Ends with a row for each reader and one JSON line; the exit code is 1 with a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import socket
import struct
import sys
import tarfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import constants
from tqdm import tqdm

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
try:
    import atheris
except ImportError:
    atheris = None
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).parent))
with atheris.instrument_imports(include=["jepa"]) if atheris else contextlib.nullcontext():
    from fuzz_readers import READERS, Reader

    from jepa.errors import InputError

REAL = Path(os.environ.get("JEPA_REAL_DATA", ROOT.parent / "shared" / "data"))
SECONDS, MEMORY, LONGEST = 10, 2 << 30, 1 << 20
Tree = Any  # plain data


# --- Forms: the plain data in a file, and a file of it. ---


def _tensors(data: bytes) -> Tree:
    size = struct.unpack("<Q", data[:8])[0]
    return [json.loads(data[8 : 8 + size]), data[8 + size :].decode("latin-1")]


def _tensors_file(tree: Tree) -> bytes:
    header = json.dumps(tree[0]).encode()
    return struct.pack("<Q", len(header)) + header + tree[1].encode("latin-1")


def _tar(data: bytes) -> Tree:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        contents = [(each, file.extractfile(each) or io.BytesIO()) for each in file]
        return [[e.name, e.type.decode(), e.linkname, content.read().decode("latin-1")] for e, content in contents]


def _tar_file(tree: Tree) -> bytes:
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w") as file:
        for name, kind, link, content in tree:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind.encode()[:1], link, len(content)
            file.addfile(info, io.BytesIO(content.encode("latin-1")))
    return made.getvalue()


def _zip(data: bytes) -> Tree:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [[each, file.read(each).decode("latin-1")] for each in file.namelist()]


def _zip_file(tree: Tree) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w") as file:
        for name, content in tree:
            file.writestr(name, content.encode("latin-1"))
    return made.getvalue()


def _png(data: bytes) -> Tree:
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8].decode("latin-1"), data[at + 8 : at + 8 + size].decode("latin-1")])
        at += 12 + size
    return chunks


def _png_file(tree: Tree) -> bytes:
    parts = [(kind.encode("latin-1")[:4], content.encode("latin-1")) for kind, content in tree]
    chunks = [len(c).to_bytes(4, "big") + k + c + zlib.crc32(k + c).to_bytes(4, "big") for k, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


FORMS: dict[str, tuple[Callable[[bytes], Tree], Callable[[Tree], bytes]]] = {
    "json": (json.loads, lambda tree: json.dumps(tree).encode()),
    "lines": (
        lambda data: [json.loads(line) for line in data.splitlines() if line.endswith(b"}")],
        lambda tree: b"".join(json.dumps(row).encode() + b"\n" for row in list.copy(tree)),
    ),
    "yaml": (yaml.safe_load, lambda tree: yaml.safe_dump(tree).encode()),
    "csv": (
        lambda data: [row.split(",") for row in data.decode("latin-1").splitlines()],
        lambda tree: "\n".join(",".join(map(str, row)) for row in tree).encode("utf-8", "surrogatepass"),
    ),
    "tensors": (_tensors, _tensors_file),
    "tar": (_tar, _tar_file),
    "zip": (_zip, _zip_file),
    "png": (_png, _png_file),
}  # fmt: skip


# --- Changes. ---

CANARY = "was_run"
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), "", " ", "0", "nan", "\0", "\ud800", "\u202e", "é" * 300, "x" * 70_000, [], {}, [[]], [None], [{}],
    [0, 1], {"": None}, "..", "../../../etc/passwd", "/dev/zero", "a.mp4", "???", "${oc.env:HOME}",
    "concat:a.mp4|a.mp4", "pipe:0.mp4",
    {"_target_": "os.system", "command": f"touch {CANARY}"}, {"media": "a.mp4", "start": -1},
]  # fmt: skip
TOKENS = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b",", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000,
    b"1e999", b"NaN", b"-", b"\\ud800", b"\x80", b"# ", b"&a [*a]", b": ", b"- ",
    f'!!python/object/apply:os.system ["touch {CANARY}"]'.encode(), b"!!binary x", b"!!timestamp 2001-99-99",
    b"cos\nsystem\n(S'touch was_run'\ntR.",
]  # fmt: skip


def changed(data: bytes, others: list[bytes], form: str, rng: Random) -> bytes:
    """A file with one to four changes: of the plain data in it where it has a `form`, and of its bytes."""
    if form in FORMS and rng.random() < 0.7:
        load, dump = FORMS[form]
        with contextlib.suppress(Exception):  # what is broken already is no longer plain data
            tree = load(data)
            for _ in range(rng.choice([1, 1, 2, 4])):
                tree = _changed_tree(tree, rng)
            return dump(tree)[:LONGEST]
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = _changed_bytes(data, others, rng)
    return data[:LONGEST]


def _changed_tree(tree: Tree, rng: Random) -> Tree:
    """A tree with one value changed, each as likely as its parent's others."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.05:
        if isinstance(tree, str) and rng.random() < 0.5:
            return _changed_bytes(tree.encode("latin-1", "replace"), [], rng).decode("latin-1")
        if isinstance(tree, int | float) and rng.random() < 0.5:
            return rng.choice([-tree, tree + 1, tree * 1000, tree / 3, str(tree), [tree]])
        return rng.choice(ODD)
    pairs: list[tuple[Any, Any]] = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    at = rng.randrange(len(pairs))
    key, value = pairs[at]
    kind = rng.random()
    if kind < 0.1:
        pairs.pop(at)
    elif kind < 0.15:
        pairs.insert(at, (f"{key}2", value))
    elif kind < 0.2:
        pairs[at] = (str(rng.choice(ODD)), value)
    elif kind < 0.25:
        pairs[at] = (key, pairs[rng.randrange(len(pairs))][1])
    else:
        pairs[at] = (key, _changed_tree(value, rng))
    return dict(pairs) if isinstance(tree, dict) else [value for _, value in pairs]


def _changed_bytes(data: bytes, others: list[bytes], rng: Random) -> bytes:
    at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    to = min(to, at + rng.choice([1, 8, 100, LONGEST]))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes(x ^ 1 << rng.randrange(8) for x in data[at : at + 1]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.choice(TOKENS) + data[rng.choice([at, to]) :]
    if kind == 3:
        return data[:at] + rng.choice([data[at:to] * 2, b""]) + data[to:]
    if kind == 4:
        return data[:at]
    if kind == 5:
        number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
        return data[:at] + struct.pack(rng.choice("<>") + "I", number) + data[at + 4 :]
    other = rng.choice([data, *others])
    return data[:at] + other[rng.randint(0, len(other)) :]


# --- One input. ---


class Touched(BaseException):
    """A reader reached out of its folder. No reader catches it."""


_guarded: list[Path] = []  # the folder, while a reader runs
_reached: list[str] = []
_hooked = False
_OUTSIDE = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "builtins.input", "urllib.")
_PATHS = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guarded:
        return
    bad = event.startswith(_OUTSIDE)
    if event.startswith(_PATHS) or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        path = arguments[0]
        inside = isinstance(path, int) or Path(os.fsdecode(path)).resolve().is_relative_to(_guarded[0])
        bad = not inside and path != os.devnull and "__pycache__" not in str(path)
    if bad:
        _reached.append(f"{event} {arguments}"[:200])
        raise Touched(_reached[-1])


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Within it, what reaches out of the folder raises `Touched`."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # once, and for good
        _hooked = True
    _guarded.append(folder.resolve())
    _reached.clear()
    try:
        yield
    finally:
        _guarded.clear()


def outcome(reader: Reader, path: Path, folder: Path, data: bytes) -> str:
    """`value`, `refusal`, or what went wrong: the exception's type and its last line within the package."""
    path.write_bytes(data)
    found = "value"
    try:
        with guarded(folder):
            reader.read(path)
    except InputError as error:
        found = "refusal"
        try:
            str(error).encode()
        except UnicodeEncodeError:
            found = "a message that cannot be printed"
    except (Exception, Touched) as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/jepa/" in each.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        found = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    except BaseException as error:  # a panic in Rust
        found = f"{type(error).__name__}: {error}"
    if _reached:
        found = f"reached {_reached[0]}"
    if (folder / CANARY).exists() or Path(CANARY).exists():
        found = "code was run"
    return found


# --- Many inputs, in a process. ---


class Tally:
    """Figures in memory that the process of a reader shares with the one that watches it; and the input under way."""

    NAMES = ("inputs", "values", "refusals", "findings", "slowest", "peak")

    def __init__(self) -> None:
        self._numbers = multiprocessing.RawArray("d", len(self.NAMES))
        self._input = mmap.mmap(-1, 8 + LONGEST)

    def __getitem__(self, name: str) -> float:
        return self._numbers[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: float) -> None:
        self._numbers[self.NAMES.index(name)] = value

    @property
    def input(self) -> bytes:
        return self._input[8 : 8 + struct.unpack("<Q", self._input[:8])[0]]

    @input.setter
    def input(self, data: bytes) -> None:
        self._input[: 8 + len(data)] = struct.pack("<Q", len(data)) + data


def keep(name: str, data: bytes, what: str, output: Path) -> None:
    """A finding as a file, the first one of its kind, and a line in `findings.txt`."""
    kind = what.partition(":")[0] if " at " in what else what[:40]
    path = output / f"{name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}.bin"
    if not path.exists():
        path.write_bytes(data)
        with (output / "findings.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{path}: {what}\n")


def one_input(name: str, path: Path, folder: Path, data: bytes, tally: Tally, output: Path) -> None:
    tally.input = data
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    began = time.perf_counter()
    found = outcome(READERS[name], path, folder, data)
    faulthandler.cancel_dump_traceback_later()
    tally["slowest"] = max(tally["slowest"], time.perf_counter() - began)
    tally["inputs"] += 1
    counted = {"value": "values", "refusal": "refusals"}.get(found, "findings")
    tally[counted] += 1
    if counted == "findings":
        keep(name, data, found, output)


def work(
    name: str, path: Path, folder: Path, seeds: list[bytes], seed: int, count: int, tally: Tally, output: Path
) -> None:
    """The process of a reader: `count` inputs."""
    with (output / "log.txt").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    faulthandler.enable()
    constants.HF_HUB_OFFLINE = True  # a name that may be a repository's is looked for in the cache alone
    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    began, form = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, READERS[name].form

    def run(data: bytes) -> None:
        one_input(name, path, folder, data, tally, output)
        tally["peak"] = max(tally["peak"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) / 1024)

    if atheris:
        corpus = folder / ".corpus"
        corpus.mkdir(exist_ok=True)
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
        flags = [f"-runs={count}", f"-seed={seed + 1}", f"-max_len={LONGEST}", "-rss_limit_mb=0", "-timeout=1000"]
        mutate = lambda data, size, at: changed(data, seeds, form, Random(at))[:size]  # noqa: E731
        atheris.Setup([name, *flags, str(corpus)], run, custom_mutator=mutate)
        atheris.Fuzz()
    for number in range(count):
        rng = Random(f"{seed} {name} {number}")
        run(changed(rng.choice(seeds), seeds, form, rng))


def seeds_of(reader: Reader, folder: Path) -> tuple[Path, list[bytes]]:
    """The file to break, and whole ones: those that `make` wrote, and the beginnings of real ones."""
    paths = list(reader.make(folder))
    found = [*paths, *sorted(path for glob in reader.real for path in REAL.glob(glob) if path.is_file())]
    largest = 1 << 14 if reader.form in ("lines", "csv") else 1 << 19
    return paths[0], [path.read_bytes()[:largest] for path in found]


def fuzz(name: str, seed: int, count: int, output: Path, bar: Any) -> Tally:
    """A reader's inputs: in a new process after each one that a process did not outlive."""
    tally = Tally()
    with TemporaryDirectory() as place:
        folder, context = Path(place) / "folder", multiprocessing.get_context("fork")
        folder.mkdir()
        path, seeds = seeds_of(READERS[name], folder)
        while (left := count - int(tally["inputs"])) > 0:
            shown = tally["inputs"]
            arguments = (name, path, folder, seeds, seed + int(shown), left, tally, output)
            process = context.Process(target=work, args=arguments)
            process.start()
            while process.is_alive():
                process.join(0.1)
                bar.update(tally["inputs"] - shown)
                shown = tally["inputs"]
            if tally["inputs"] < count:  # it did not come to its end
                hung = "more than 10 s" if process.exitcode == 1 else f"ended by {process.exitcode}"
                keep(name, tally.input, hung, output)
                tally["inputs"] += 1
                tally["findings"] += 1
    return tally


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Addresses at which somebody listens are among the odd values; gives whether one was opened."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        urls = [f"{kind}://127.0.0.1:{server.getsockname()[1]}/a.mp4" for kind in ("http", "rtsp", "tcp")]
        ODD.extend(urls)

        def opened() -> bool:
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
                return True
            return False

        try:
            yield opened
        finally:
            del ODD[-len(urls) :]


def replay(path: Path) -> str:
    """What a reader makes of a finding; an exception keeps its traceback."""
    reader = READERS[path.name.rpartition("-")[0]]
    data = path.read_bytes()
    with TemporaryDirectory() as folder:
        file, *_ = reader.make(Path(folder))
        file.write_bytes(data)
        os.chdir(folder)
        with guarded(Path(folder)):
            try:
                return f"value: {reader.read(file)!r:.300}"
            except InputError as error:
                return f"refusal: {str(error)[:2000]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 inputs, under 50 s")
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, shared out by what a reader costs")
    parser.add_argument("--minutes", type=float, help="rounds of inputs until the time is over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS), help="some of the readers")
    parser.add_argument("--output", type=Path, default=Path("outputs/fuzz"), help="where findings are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read a finding again")
    given = parser.parse_args()
    if given.replay:
        print(replay(given.replay.resolve()))
        return 0
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    names, began, total = given.readers.split(","), time.monotonic(), 0
    inputs = 1000 if given.quick else 10_000 if given.minutes else given.inputs
    share = inputs / sum(READERS[name].share for name in names)
    rows: dict[str, dict[str, float]] = {name: dict.fromkeys(Tally.NAMES, 0.0) for name in names}
    with listening() as opened, tqdm(total=None if given.minutes else inputs, unit="input") as bar:
        while not total or (given.minutes and time.monotonic() - began < 60 * given.minutes):
            for name in names:
                bar.set_description(name)
                count = max(1, round(share * READERS[name].share))
                tally = fuzz(name, given.seed + total, count, given.output.resolve(), bar)
                for key, value in rows[name].items():
                    join = max if key in ("slowest", "peak") else float.__add__
                    rows[name][key] = join(value, tally[key])
            total = int(sum(row["inputs"] for row in rows.values()))
        if opened():
            keep("all", b"", "an address was opened because a value looked like one", given.output)
            rows[names[0]]["findings"] += 1
    print(f"{'reader':24}{'inputs':>9}{'values':>9}{'refusals':>9}{'findings':>9}{'slowest, s':>12}{'peak, MB':>10}")
    for name, row in rows.items():
        counts = "".join(f"{int(row[key]):9}" for key in Tally.NAMES[:4])
        print(f"{name:24}{counts}{row['slowest']:12.2f}{row['peak']:10.0f}")
    if (found := given.output / "findings.txt").exists():
        print(found.read_text(encoding="utf-8"), end="")
    figures = {
        "seed": given.seed,
        "guided": atheris is not None,
        "inputs": total,
        "findings": int(sum(row["findings"] for row in rows.values())),
        "slowest_seconds": round(max(row["slowest"] for row in rows.values()), 2),
        "peak_mebibytes": round(max(row["peak"] for row in rows.values())),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures))
    return int(figures["findings"] > 0)


if __name__ == "__main__":
    sys.exit(main())
