"""The report's pages in a real browser, Chromium: narrow, dark and printed, and what axe-core (npm) finds in it.

They allow no scripts, so that a copy without that rule is measured. Skipped where there is no Chromium, and the
test of axe-core where npm cannot have it.
"""

import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from scalpel.report.build import report
from tests import synthetic
from tests.test_exhibits import world
from tests.test_report import build, page_of, study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, of which none is installed here"),
]
FOUND = "window.found = found => document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END';"


LARGEST = 5e6  # bytes of a page
PAPER = 717  # pixels of an A4 page's 210 mm between margins of 0.4 inches, Chromium's own


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Of a study whose results say what they took, with pictures of the size that it asks for."""
    root = tmp_path_factory.mktemp("browser")
    whole = synthetic.study_file()["exhibits"]
    made = world(root, workflow=synthetic.workflow_with(root, study() | {"exhibits": whole}))
    for recipe in root.glob("results/*/*/recipe.json"):
        provenance = recipe.with_name("provenance.json")
        known = json.loads(provenance.read_text()) if provenance.exists() else {}
        about = {"started": 1.8e9, "seconds": 61.5, "cpu_seconds": 118.0, "host": "node-17", "python": "3.11.7"}
        provenance.write_text(json.dumps(known | about))
    began = time.monotonic()
    build(made)
    print(f"all exhibits and both pages were built in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    report(root / made[0].drawings[synthetic.STUDY, "report"].recipe_path)
    print(f"both pages alone in {time.monotonic() - began:.1f} s")
    return page_of(made).parent


@pytest.fixture(scope="module", params=["index", "gallery"])
def page(request, pages) -> str:
    text = (pages / f"{request.param}.html").read_text()
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)


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


def test_pages_are_one_file_each_of_a_size_that_mails_take(pages):
    for file in pages.glob("*.html"):
        size = file.stat().st_size
        print(f"{file.name}: {size / 1e6:.2f} MB")
        assert 10_000 < size < LARGEST


@pytest.mark.parametrize("name", ["index", "gallery"])
def test_a_page_is_printed(name, pages, tmp_path):
    """Without scripts, as it is: to a PDF with a page at least for every screen of text."""
    paper = tmp_path / "page.pdf"
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--no-pdf-header-footer", f"--print-to-pdf={paper}", (pages / f"{name}.html").as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert paper.is_file(), done.stderr[-2000:]
    content = paper.read_bytes()
    count = len(re.findall(rb"/Type\s*/Page\b(?!s)", content))
    print(f"{name}: {count} pages on paper")
    assert content.startswith(b"%PDF-") and count > 1


def test_no_column_is_cut_on_paper(page, tmp_path):
    """With the rules for paper in a frame as wide as an A4 page: what is wider than its frame would be cut. The one
    table of checkpoints that is printed says of which share of training it is."""
    on_paper = page.replace("@media print", "@media all").replace("@media screen and", "@media not all and")
    assert on_paper.count("@media all") == 1
    frame = f'<iframe width="{PAPER}" height="900" style="border:0" srcdoc="{html.escape(on_paper)}"></iframe>'
    look = """addEventListener('load', () => {
      const inside = document.querySelector('iframe').contentDocument, of = inside.documentElement;
      inside.querySelectorAll('details').forEach(d => d.open = true);
      const wide = [...inside.querySelectorAll('table, td, th, pre, img, svg')].filter(
        e => e.getBoundingClientRect().right > of.clientWidth + 1 || e.scrollWidth > e.clientWidth + 2);
      const seen = e => e.checkVisibility() && e.getBoundingClientRect().height > 0;
      found([of.scrollWidth, wide.map(e => e.outerHTML.slice(0, 200)),
        [...inside.querySelectorAll('caption')].filter(seen).map(e => e.textContent),
        [...inside.querySelectorAll('.course input, .course label, nav')].filter(seen).length]);
    })"""
    (inner, wide, captions, controls), _ = browser(
        f"<!doctype html><body>{frame}<script>{FOUND}{look}</script>", tmp_path
    )
    assert wide == [] and inner <= PAPER and controls == 0
    assert captions == (["After 100% of each run's own steps"] if 'id="course"' in page else [])


def test_the_claims_are_a_table_to_a_screen_reader_when_narrow(pages, tmp_path):
    """By their roles, which a browser drops of a table that is laid out as blocks."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (pages / "index.html").read_text())
    frame = f'<iframe width="360" height="900" srcdoc="{html.escape(text)}"></iframe>'
    look = """addEventListener('load', () => {
      const inside = document.querySelector('iframe').contentDocument, of = inside.querySelector('table.claims');
      const block = [...of.querySelectorAll('*')].filter(e => getComputedStyle(e).display == 'block');
      const cells = [of, ...block].filter(e => /^(TABLE|THEAD|TBODY|TR|TH|TD)$/.test(e.tagName));
      found([cells.length, cells.filter(e => !e.role).map(e => e.outerHTML.slice(0, 100)),
        of.querySelector('thead').checkVisibility()]);
    })"""
    (cells, without, headed), _ = browser(f"<!doctype html><body>{frame}<script>{FOUND}{look}</script>", tmp_path)
    assert cells > 50 and without == [] and headed


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
