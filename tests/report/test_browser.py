"""The page in a real browser: no error on its console, every figure drawn, nothing wider than a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rmlora.report.write import write_report
from tests.report import fixture
from tests.report.fixture import FakeStudy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

# Stands around the report in a frame of a phone's or a desk's width, and writes down what it sees inside.
PROBE = """<!doctype html><body style="margin:0"><iframe id="f" style="width:WIDTHpx;height:3000px;border:0"
src="report/report.html"></iframe><pre id="seen"></pre><script>
document.getElementById("f").onload = event => {
  const page = event.target.contentDocument;
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  const figures = [...page.querySelectorAll("figure")].map(figure => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const shapes = [...figure.querySelectorAll("svg path, svg use, svg text")].filter(
      shape => { const b = shape.getBoundingClientRect(); return b.width + b.height > 0; });
    const outside = [...figure.querySelectorAll("svg text")].filter(text => {
      const b = text.getBoundingClientRect();
      return b.left < box.left - 2 || b.right > box.right + 2;
    }).map(text => text.textContent);
    return {id: figure.id, width: box.width, height: box.height, shapes: shapes.length, outside};
  });
  const root = page.documentElement;
  document.getElementById("seen").textContent =
    JSON.stringify({figures, width: root.clientWidth, needed: root.scrollWidth});
};
</script></body>"""


def look(study: Path, width: int) -> tuple[dict, str]:
    """What the browser sees, and what it has to say."""
    probe = study / f"probe-{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    seen = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert seen, done.stderr[-2000:]
    return json.loads(html.unescape(seen[1])), done.stderr


@pytest.fixture(scope="module", params=["methods", "grid"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("browser") / "study"
    folder = FakeStudy(ranks=(8, 32)).write(place) if request.param == "methods" else fixture.grid(place)
    for cell in (folder / "cells").iterdir():
        fixture.adapter(cell)
    write_report(folder)
    return folder


@pytest.mark.parametrize("width", [375, 1280])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_screen(study: Path, width: int) -> None:
    seen, said = look(study, width)
    assert "CONSOLE" not in said, said
    linked = re.findall(r"\]\(figures/([^)]+)\.svg\)", (study / "report" / "report.md").read_text())
    assert [figure["id"] for figure in seen["figures"]] == linked
    for figure in seen["figures"]:
        assert min(figure["width"], figure["height"]) > 80, figure
        assert figure["shapes"] > 15, figure
        assert figure["outside"] == [], figure
    assert seen["needed"] <= seen["width"]


def test_the_console_is_heard(study: Path) -> None:
    bad = study / "bad.html"
    bad.write_text("<!doctype html><body><script>console.error('heard')</script><pre id='seen'>{}</pre>")
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--enable-logging=stderr", "--v=0", "--dump-dom", bad.as_uri()]
    assert "CONSOLE" in subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stderr
