"""The pages in headless Chromium: wide and narrow, light and dark. One launch a theme shows all of them."""

from __future__ import annotations

import html as escaping
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jepa.report import compare
from jepa.report.render import html

WIDTHS = (1280, 390)
PAGES = ("report", "compare")

_ERRORS = "<script>var errors = []; addEventListener('error', event => errors.push(event.message), true)</script>"
_FRAMES = """<body>{frames}<script>
addEventListener("load", () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument, root = page.documentElement;
    found[frame.id] = {{
      errors: frame.contentWindow.errors,
      width: root.clientWidth,
      needed: root.scrollWidth,
      charts: [...page.querySelectorAll("svg")].map(chart => {{
        const box = chart.getBoundingClientRect();
        return [box.width, box.height, chart.querySelectorAll("path, text").length];
      }}),
      ground: getComputedStyle(page.body).backgroundColor,
      ink: getComputedStyle(page.body).color,
      badges: page.querySelectorAll(".badge").length,
    }};
  }}
  const findings = document.createElement("pre");
  findings.id = "findings";
  findings.textContent = JSON.stringify(found);
  document.body.append(findings);
}});
</script></body>"""


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, chromium: str, stream_results: Any, stream_report: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """Theme -> what each page looks like in a frame of each width."""
    folder = tmp_path_factory.mktemp("pages")
    other = stream_results.model_copy(update={"name": "other", "seed": 7})
    pages = {
        "report": stream_report["report.html"].read_text(encoding="utf-8"),
        "compare": html(compare.report({"a": stream_results, "b": other})),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page.replace("<head>", f"<head>{_ERRORS}", 1))
    frames = "".join(
        f'<iframe id="{name}-{width}" src="{name}.html" width="{width}" height="900" style="border: 0"></iframe>'
        for name in PAGES
        for width in WIDTHS
    )
    (folder / "frames.html").write_text(_FRAMES.format(frames=frames))
    return {theme: _look(chromium, folder, theme) for theme in ("light", "dark")}


def _look(chromium: str, folder: Path, theme: str) -> dict[str, Any]:
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={folder / theme}",
        "--window-size=1400,1000", f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}", "--dump-dom",
        (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    findings = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    assert findings is not None
    return dict(json.loads(escaping.unescape(findings[1])))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_shows_its_charts(found, page, width, theme):
    shown = found[theme][f"{page}-{width}"]
    assert shown["errors"] == []
    assert width - 20 <= shown["width"] <= width
    assert shown["needed"] <= shown["width"]
    assert bool(shown["charts"]) == (page == "report")
    for wide, tall, marks in shown["charts"]:
        assert wide > 200
        assert tall > 50
        assert marks > 10
    assert shown["badges"] >= 2


def test_dark_is_dark(found):
    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    for page in found["light"]:
        light, dark = (found[theme][page] for theme in ("light", "dark"))
        assert brightness(light["ground"]) > 200 > 60 > brightness(light["ink"])
        assert brightness(dark["ground"]) < 60 < 200 < brightness(dark["ink"])
