"""The wheel: what it contains, and that it runs from any folder."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import refuses, without_seconds

import jepa
from jepa.cli import COMMANDS
from jepa.data import VideoFile
from jepa.data.world import StreamStyle, World
from jepa.errors import DISTRIBUTION, InputError
from jepa.operations import OperationLedger
from jepa.selective import Gate, LatentCache, LongestGap, SelectiveDecoder

ROOT = Path(__file__).parent.parent
SOURCES = ("jepa", "conf", "pyproject.toml", "setup.py", "LICENSE", "README.md")
COMPOSE = """
import jepa.conf
from jepa.cli import COMMANDS, compose
from pathlib import Path
import sys
for command in COMMANDS:
    compose(command)
    print(command)
print(jepa.__file__, file=sys.stderr)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


DECODE = """
import json, sys
import numpy as np
from jepa.operations import OperationLedger
from jepa.runtime import OnnxModel
from jepa.selective import Gate, LatentCache, LongestGap, SelectiveDecoder

model, ledger, emissions = OnnxModel(sys.argv[1], threads=1), OperationLedger(), []
selective = SelectiveDecoder(LongestGap(Gate(1.0), 4.0), model, ledger, cache=LatentCache(1e-3, 8))
for latents, times in model.stream(np.load(sys.argv[2]), 1.0, "what happens?", ledger):
    for latent, time in zip(latents, times):
        emissions += selective.step(latent, float(time))
emissions += selective.finish()
strangers = {"torch", "scipy", "transformers", "pydantic", "typing_extensions"} & set(sys.modules)
print(json.dumps([[e.text, e.time, e.source] for e in emissions]))
print(json.dumps(ledger.to_dict()))
print(sorted(strangers))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing left over from an earlier build gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    [built] = out.glob("*.whl")
    return built


def install(wheel: Path, elsewhere: Path) -> tuple[Path, Path]:
    """The folders of the programs and of the packages of a new environment that has the wheel and nothing else."""
    environment = elsewhere / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=elsewhere)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=elsewhere)
    [packages] = environment.glob("lib/python*/site-packages")
    return environment / "bin", packages


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment: the wheel, and the libraries of this environment behind it."""
    binaries, packages = install(wheel, tmp_path_factory.mktemp("elsewhere"))
    (packages / "outer.pth").write_text(sysconfig.get_paths()["purelib"])
    return binaries


def test_the_wheel_holds_every_module_and_every_yaml(wheel):
    assert wheel.stat().st_size < 2e6
    file = zipfile.ZipFile(wheel)
    names = set(file.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jepa").rglob("*.py")}
    yaml = {f"jepa/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    pages = {"jepa/report/page.html.j2", "jepa/report/notes.yaml"}
    pages |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "jepa" / "live" / "page").iterdir()}
    assert modules | yaml | pages | {"jepa/conf/__init__.py"} == {n for n in names if ".dist-info/" not in n}
    about = f"selective_jepa-{jepa.__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names
    stated = file.read(f"{about}/METADATA").decode().splitlines()
    assert {f"Name: {DISTRIBUTION}", 'Requires-Dist: av>=14; extra == "video"'} < set(stated)


def test_the_installed_command_runs_from_another_folder(installed, tmp_path):
    assert "jepa train experiment=" in run(installed / "jepa", "--help", cwd=tmp_path).stdout
    assert run(installed / "jepa", "--version", cwd=tmp_path).stdout.strip() == f"jepa {jepa.__version__}"
    configuration = run(installed / "jepa", "train", "name=trial", "--cfg", "job", cwd=tmp_path).stdout
    assert "name: trial" in configuration.splitlines()


def test_every_installed_command_composes(installed, tmp_path):
    """The choices within them are composed from the sources, by tests/test_config.py."""
    done = run(installed / "python", "-c", COMPOSE, cwd=tmp_path)
    assert done.stdout.split() == list(COMMANDS)
    assert Path(done.stderr.splitlines()[-1]).is_relative_to(installed.parent)


def test_a_stream_is_decoded_where_there_is_no_torch(wheel, exported, tiny_model, tmp_path):
    """A new environment has the wheel and what the extra `runtime` lists: the model's emissions and counts."""
    binaries, packages = install(wheel, tmp_path)
    python = binaries / "python"
    for name in ("numpy", "onnxruntime", "tokenizers"):
        place = Path(str(importlib.import_module(name).__file__)).parent
        for path in (place, place.with_name(f"{name}.libs")):
            if path.exists():
                (packages / path.name).symlink_to(path)
    missing = subprocess.run([python, "-c", "import torch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in missing.stderr
    video = World(size=48, fps=8).stream("live", seed=(3,), duration=24.0, style=StreamStyle(mean_event=3.0))
    chunks = np.stack(list(video.frames(chunk=4)))
    np.save(tmp_path / "frames.npy", chunks)
    found = run(python, "-c", DECODE, exported, tmp_path / "frames.npy", cwd=tmp_path).stdout.splitlines()
    ledger, emissions = OperationLedger(), []
    selective = SelectiveDecoder(LongestGap(Gate(1.0), 4.0), tiny_model, ledger, cache=LatentCache(1e-3, 8))
    for latents, times in tiny_model.stream(chunks, 1.0, "what happens?", ledger):
        for latent, time in zip(latents, times, strict=True):
            emissions += selective.step(latent, float(time))
    emissions += selective.finish()
    assert json.loads(found[0]) == [[e.text, e.time, e.source] for e in emissions]
    assert len(emissions) > 1
    assert without_seconds(json.loads(found[1])) == without_seconds(ledger.to_dict())
    assert found[2] == "[]"


def test_only_the_live_room_imports_what_comes_with_an_extra_before_it_is_used():
    extras = {"av", "starlette", "uvicorn", "websockets", "sklearn", "gguf", "sentence_transformers"}
    extras |= {"onnx", "onnxruntime", "onnxscript"}
    for path in (ROOT / "jepa").rglob("*.py"):
        first = ast.parse(path.read_text(encoding="utf-8")).body
        names = [alias.name for node in first if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in first if isinstance(node, ast.ImportFrom)]
        assert extras.isdisjoint(name.partition(".")[0] for name in names), path


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("jepa.live.command", "uvicorn"),
        ("jepa.live.command", "websockets"),
        ("jepa.live.server", "starlette.applications"),
        ("jepa.live.sources", "av"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(module, package, monkeypatch, tmp_path):
    importlib.import_module(module)
    monkeypatch.setitem(sys.modules, package, None)  # not to be found
    monkeypatch.delitem(sys.modules, module)
    name = package.partition(".")[0]
    refuses(rf"^{name} is not installed: pip install 'selective-jepa\[live\]'$", importlib.import_module, module)
    if package == "av":
        with pytest.raises(InputError, match=r"av is not installed: .*\[video\]"), VideoFile("a", tmp_path / "a"):
            pass
