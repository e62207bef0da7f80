"""The report's pages in a real browser, Chromium: narrow, dark and printed, and what axe-core (npm) finds in it.

They allow no scripts, so that a copy without that rule is measured. Skipped where there is no Chromium, and the
test of axe-core where npm cannot have it.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import synthetic
from tests.test_exhibits import world
from tests.test_report import build, page_of, study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, of which none is installed here"),
]
FOUND = "window.found = found => document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END';"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    made = world(root, workflow=synthetic.workflow_with(root, study() | {"exhibits": whole()}))
    build(made)
    return page_of(made).parent


@pytest.fixture(scope="module", params=["index", "gallery"])
def page(request, pages) -> str:
    text = (pages / f"{request.param}.html").read_text()
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)


def whole() -> dict:
    return {name: raw for name, raw in study()["exhibits"].items() if name != "asked"}


def browser(text: str, folder: Path, *words: str) -> tuple[object, str]:
    """What a page's script says, and all that the browser printed; errors of its console among them."""
    file = folder / "page.html"
    file.write_text(text)
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", *words, file.as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = re.search(r"FOUND(.*?)END", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.mark.parametrize("width", [320, 360, 768, 1440])
def test_nothing_is_wider_than_the_window(width, page, tmp_path):
    """In a frame of that width, since a window has a least width of its own."""
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
    look = """addEventListener('load', () => {
      const inside = document.querySelector('iframe').contentDocument, of = inside.documentElement;
      inside.querySelectorAll('details').forEach(d => d.open = true);
      const wide = [...inside.querySelectorAll('main > *, header > *')].filter(e => e.scrollWidth > e.clientWidth + 1);
      found([of.scrollWidth, of.clientWidth, wide.map(e => e.outerHTML.slice(0, 200))]);
    })"""
    (inner, outer, wide), said = browser(f"<!doctype html><body>{frame}<script>{FOUND}{look}</script>", tmp_path)
    assert 0 < inner <= outer <= width, wide
    assert "CONSOLE" not in said


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("needs npm, which is not installed here")
    packed = subprocess.run([npm, "pack", "axe-core@4.14.1"], cwd=folder, capture_output=True, text=True, timeout=120)
    if packed.returncode:
        pytest.skip(f"npm cannot have axe-core here: {packed.stderr.strip().splitlines()[-1:]}")
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder)
    return (folder / "package" / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme, page, axe, tmp_path):
    """Of all its rules and impacts; every part of the page opened."""
    look = """document.querySelectorAll('details').forEach(d => d.open = true);
      axe.run().then(r => found([matchMedia('(prefers-color-scheme: dark)').matches, r.passes.length,
        r.violations.map(v => [v.id, v.impact, v.nodes.length, v.nodes[0].html.slice(0, 300)])]))"""
    whole = axe.replace("</script", "<\\/script")
    script = f"<script>{whole}</script><script>{FOUND}{look}</script>"
    words = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    (dark, passed, violations), _ = browser(page.replace("</body>", script + "</body>"), tmp_path, *words)
    assert dark == (scheme == "dark") and passed > 15
    print(f"axe-core, {scheme}: {passed} rules pass, {len(violations)} do not")
    assert violations == []
