"""The site, the notebook, and the files for those who carry the project on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image

import jepa
from jepa.training.configs import LanguageTrainConfig

ROOT = Path(__file__).parents[1]
LINKED = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]  # beside docs/, whose links the build checks


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # news of the theme
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_has_every_page_and_what_the_api_says(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.parent.relative_to(site) for path in site.rglob("index.html")} - {Path()}
    assert built == pages - {Path("index")}
    shown = (site / "api" / "selective" / "index.html").read_text(encoding="utf-8")
    for name in ("SelectiveDecoder", "Gate", "LatentCache", "calibrate_threshold"):
        assert re.search(rf'id="jepa\.selective\.[\w.]*{name}"', shown), name


def test_every_key_of_a_training_is_explained(site):
    shown = (site / "api" / "configuration" / "index.html").read_text(encoding="utf-8")
    table = shown[shown.index('id="jepa.training.configs.LanguageTrainConfig"') :].partition("</table>")[0]
    assert re.findall(r"<tr>\s*<td><code>(\w+)</code>", table) == list(LanguageTrainConfig.model_fields)


def test_a_page_asks_nobody_else_for_anything(site):
    fetched = r'<(?:script|img|source|iframe)\b[^>]*\bsrc="(?:https?:)?//|@import[^;]*//|url\(["\']?(?:https?:)?//'
    fetched += r'|<link\b[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//'
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not re.search(fetched, path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", LINKED)
def test_a_file_beside_the_site_links_to_what_there_is(name):
    def slug(title: str) -> str:
        return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")

    for target in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", read(name)):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), f"{name}: {target}"
        titles = re.findall(r"^#+ (.*)$", read(path), re.M) if anchor else []
        assert not anchor or anchor in map(slug, titles), f"{name}: {target}"


# --- The notebook.


def told(cells: list[nbformat.NotebookNode]) -> dict[str, float]:
    """Calls, cached texts and the share of events told right, by method; from what the cells printed."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    found = re.findall(r"(\w+): (\d+) decoder calls, (\d+) texts from the cache, (\d+) of (\d+) events", printed)
    values = {}
    for name, calls, hits, right, events in found:
        values |= {f"{name} calls": int(calls), f"{name} hits": int(hits), f"{name} right": int(right) / int(events)}
    return values


def test_the_notebook_runs_and_gives_what_it_shows(tmp_path):
    text = read("docs/notebooks/first_steps.ipynb")
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    stored = nbformat.reads(text, as_version=4)
    assert all(cell.execution_count and cell.outputs for cell in stored.cells[-3:-1] if cell.cell_type == "code")
    ran = nbformat.reads(text, as_version=4)
    NotebookClient(ran, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for output in ran.cells[-2].outputs)
    values = told(ran.cells)
    assert values == pytest.approx(told(stored.cells), rel=0.1, abs=3)  # another machine may round otherwise
    assert values["selective calls"] < values["uniform calls"] / 1.5
    assert values["selective right"] > values["uniform right"] - 0.05


# --- The animation.


def test_the_animation_moves_and_is_small():
    path = ROOT / "docs" / "images" / "demo.webp"
    assert path.stat().st_size < 3e6
    with Image.open(path) as animation:
        assert animation.n_frames > 100
    assert "docs/images/demo.webp" in read("README.md")


# --- For those who carry it on.


def test_the_version_is_told_the_same_everywhere():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == jepa.__version__
    assert citation["license"] == "Apache-2.0"
    [first, *_] = re.findall(r"^## \[(\d[^\]]*)\] - (.*)$", read("CHANGELOG.md"), re.M)
    assert first == (jepa.__version__, str(citation["date-released"]))


def test_the_workflow_tests_the_oldest_and_the_newest_python():
    job = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["test"]
    oldest, newest = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', read("pyproject.toml")).groups()
    assert job["strategy"]["matrix"]["python"] == [f"3.{oldest}", f"3.{int(newest) - 1}"]
    assert job["steps"][-1]["run"] == read(".ci/run").splitlines()[-1] == "make test"


def test_the_forms_and_hooks_are_whole():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
    [local] = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert {hook["id"] for hook in local["hooks"]} == {"ruff", "format", "mypy"}
    assert json.dumps(local).count(".venv/bin/ruff") == 2
