"""The page: one file with everything, built from the study."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scalpel.claims.judge import APPEARS, NOT_RUN, UNDECIDED
from scalpel.claims.scalpel_vs_hammer import CLAIMS
from scalpel.errors import UserError
from scalpel.exhibits.embedded import current
from scalpel.exhibits.render import render
from scalpel.exhibits.result import Result
from scalpel.report import audits, setup, tables
from scalpel.report.build import report
from scalpel.report.drops import drops
from tests import synthetic
from tests.synthetic import STUDY
from tests.test_exhibits import DEGENERATE, MY_TABLE, world

SMALL = {"dpi": 50, "width_inches": 6, "height_inches": 4}


def study() -> dict:
    """The study with small pictures, a title to be escaped, and a table of the user's own."""
    whole = synthetic.study_file() | {"title": "Scalpel <vs.> Hammer"}
    whole["exhibits"] = {name: raw | SMALL for name, raw in whole["exhibits"].items()}
    whole["exhibits"] |= {"asked": {"kind": "asked.py", "caption": "Questions & <answers>."}}
    return whole


def build(made) -> str:
    """The page's text, after all exhibits are made."""
    plan, root = made
    plan.record()
    for (_, name), planned in plan.drawings.items():
        if name != "report":
            render(root / planned.recipe_path)
    report(root / plan.drawings[STUDY, "report"].recipe_path)
    return page_of(made).read_text()


def page_of(made) -> Path:
    return made[1] / "results" / "report" / STUDY / "index.html"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    (root / "asked.py").write_text(MY_TABLE)
    return world(root, workflow=synthetic.workflow_with(root, study()))


@pytest.fixture(scope="module")
def page(made) -> str:
    return build(made)


class Balance(HTMLParser):
    """Fails on tags that are closed in another order than opened."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_file_with_everything(made, page):
    assert sorted(p.name for p in page_of(made).parent.iterdir()) == ["index.html", "index.json"]
    assert page.count("data:image/png;base64,") == 9 and page.count('<section id="') == 13
    assert not re.search(r"(src|href)=[\"']?(?!data:)[a-z]", page) and "url(" not in page and "<script" not in page
    assert "default-src 'none'" in page, "a browser would refuse to load anything"
    for claim in CLAIMS:
        assert html.escape(claim.text).replace("&#x27;", "&#39;") in page
        assert html.escape(claim.place).replace("&#x27;", "&#39;") in page
    assert "scaled replica" in page and "There is one seed" in page
    assert "88.0 ± 4.1" in page and "40.2 ± 2.2" in page  # MATH-500 under GRPO, ours and the paper's
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    assert current(page_of(made))["digest"] == made[0].drawings[STUDY, "report"].digest


def test_claims_stand_with_interval_margin_and_both_verdicts(page):
    section = page[page.index('<h2 id="claims">') : page.index('<h2 id="exhibits">')]
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", section)))
    for verdict in (APPEARS, UNDECIDED, NOT_RUN):
        assert verdict in text
    assert "Error over" in text and "2.0 points" in text and "(Holm)" in text and "Our runs" in text
    assert "Learning rates differ 10-fold: SFT, 3 epochs 0.001, GRPO 0.0001." in text
    assert "Learning rates differ 50-fold: SFT, 3 epochs 5e-05, GRPO 1e-06." in text
    assert "rests on IFEval, prompts; without it: +0.7 [" in text, "on what the paper's finding rests"
    assert re.search(r"some \d+ questions \(\d+ asked\)", text)
    assert "nothing published for this test" in text
    assert sum(map(int, re.findall(r'<td class="number">(\d+)</td>', section)[0::2])) == len(CLAIMS)
    assert section.count('scope="rowgroup"') == len({claim.family for claim in CLAIMS})


def test_everything_is_escaped(page):
    assert "Scalpel &lt;vs.&gt; Hammer" in page and "<vs.>" not in page
    assert "Questions &amp; &lt;answers&gt;." in page and "too many &lt;tokens&gt;" in page


def test_exhibits_stand_in_the_study_s_order_with_number_and_caption(page):
    assert re.findall(r'<section id="(\w+)">', page) == list(study()["exhibits"])
    assert re.findall(r"<h3>((?:Figure|Table) \d|asked)</h3>", page) == [
        "Figure 1", "Figure 2", "Figure 3", "Table 1", "Figure 4", "Table 2", "Figure 5", "Figure 6", "Table 3",
        "asked",
    ]  # fmt: skip
    assert '<img alt="Figure 2: Loss and gradient norm of SFT."' in page


def test_tables_call_runs_by_their_labels(page):
    section = page[page.index('<section id="asked">') :].split("</section>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", section)
    assert cells[:4] == ["GRPO", "800", "SFT, 1 epoch", "280"]
    scores = page[page.index('<section id="scores">') :].split("</section>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", scores)[:4] == ["benchmark", "of", "base", "GRPO"]


def test_recipes_stand_side_by_side(page):
    section = page[page.index('<h2 id="setup">') :]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", section, re.DOTALL)
    cells = [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row)] for row in rows]
    assert cells[0] == ["Training", "GRPO", "SFT, 1 epoch", "SFT, 3 epochs", "SFT, GRPO's questions",
                        "SFT, GRPO's rate", "SFT on own answers"]  # fmt: skip
    assert ["learning_rate", "0.0001", *["0.001"] * 3, "0.0001", "0.001"] in cells
    assert "seeds 42" in section and "temperature 0.6" in section


def test_the_page_is_the_same_on_every_run(made, page):
    report(made[1] / made[0].drawings[STUDY, "report"].recipe_path)
    assert page_of(made).read_text() == page


def test_report_of_real_models_and_several_seeds(tmp_path):
    """Not called toys; without claims, published numbers and exhibits these sections are short or gone."""
    whole = {
        "title": "Mine",
        "runs": {"a": {"method": "sft", "epochs": 1}, "b": {"method": "sft", "epochs": 2, "seeds": [7]}},
    }
    workflow = synthetic.workflow_with(tmp_path, whole)
    scale = workflow / "scales" / "real.yaml"
    scale.write_text((workflow / "scales" / "laptop.yaml").read_text().replace("seeds: [42]", "seeds: [1, 2]"))
    page = build(world(tmp_path, {"scale": "real", "overrides": {"studies": {STUDY: None}}}, workflow=workflow))
    assert "toy model" not in page and "one seed.</strong>" not in page and 'id="claims"' not in page
    assert "a (2); b (1)." in page and "mean of e² + s²/n" in page and "The paper" not in page
    assert '<td class="">seeds</td>' in page and "1, 2" in page


@pytest.mark.parametrize("edit", DEGENERATE, ids=lambda edit: edit.__name__)
def test_there_is_a_page_whatever_was_measured(tmp_path, edit):
    """Rows that are nan are shown as such, and no claim is decided by them."""
    whole = study()
    kept = ("scores", "kl_final", "norms", "sft_loss")  # tables, and a figure; test_exhibits.py draws the others
    whole["exhibits"] = {name: whole["exhibits"][name] for name in kept}
    page = build(world(tmp_path, edit=edit, workflow=synthetic.workflow_with(tmp_path, whole)))
    text = html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body") :]))
    for claim in CLAIMS:
        assert claim.text in text
    assert UNDECIDED in text and NOT_RUN in text and not re.search(r"\b(nan|inf)\b", text)


def test_an_exhibit_that_is_missing_or_another_is_named(made, page, tmp_path):
    shutil.copytree(made[1], tmp_path / "copy")
    figures = tmp_path / "copy" / "results" / "figures" / STUDY
    recipe = tmp_path / "copy" / made[0].drawings[STUDY, "report"].recipe_path
    (figures / "kl.png").unlink()
    with pytest.raises(UserError, match=r"kl\.png: missing"):
        report(recipe)
    shutil.copy(figures / "controls.png", figures / "kl.png")
    with pytest.raises(UserError, match=r"kl\.png: "):
        report(recipe)
    shutil.copy(figures / "controls.json", figures / "kl.json")
    with pytest.raises(UserError, match=r"kl\.png does not show what was planned"):
        report(recipe)


def test_a_report_of_other_code_is_refused(made, page, tmp_path):
    shutil.copytree(made[1], tmp_path / "copy")
    recipe = tmp_path / "copy" / made[0].drawings[STUDY, "report"].recipe_path
    content = json.loads(recipe.read_text())
    content["recipe"]["code"] = "f" * 12
    recipe.write_text(json.dumps(content))
    with pytest.raises(UserError, match="start snakemake again"):
        report(recipe)


def test_drops_that_do_not_add_up_are_an_error(made, tmp_path):
    step = next(entry.step for entry in made[0].entries[STUDY] if entry.stage == "data")
    shutil.copytree(made[1], tmp_path / "copy")

    def of(text: str):
        return drops(synthetic.finish(step, tmp_path / "copy", {"drops.csv": text}))

    assert of(synthetic.DROPS).rows[-1] == ("all rows read", "3,000", "100.0%", "the lines above add up")
    with pytest.raises(UserError, match="7 rows are accounted for and 8 were read"):
        of("reason,rows,meaning\ntoo_long,3,x\nkept,4,y\nread,8,z\n")
    with pytest.raises(UserError, match="damaged"):
        of("reason,rows\nkept,four\n")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (76.04, 4.46, "76.0 ± 4.5"),
        (0.42096, 0.01372, "0.421 ± 0.014"),
        (12.3, 11.2, "12 ± 11"),
        (5.0, float("nan"), "5"),
        (0.5, 0.0, "0.5"),
        (float("nan"), float("nan"), "–"),
    ],
)
def test_a_number_has_the_decimals_its_error_calls_for(value, error, text):
    import pandas as pd

    assert tables.texts_of(pd.Series([value]), pd.Series([error])) == [text]


def test_values_as_people_write_them():
    values = [None, True, 3, 12345, 0.000123456, [1, 2], [], "x", float("nan")]
    assert [tables.text_of(value) for value in values] == [
        "–", "True", "3", "12,345", "0.0001235", "1, 2", "–", "x", "–",
    ]  # fmt: skip


def test_recipes_are_compared_field_by_field():
    found = setup.compared({"a": {"x": 1, "n": {"y": 2}}, "b": {"x": 1, "n": {"y": 3}, "z": None}}, "Training")
    assert [column.name for column in found.differing.columns] == ["Training", "a", "b"]
    assert found.differing.rows == [("n.y", "2", "3")] and found.shared == ["x 1", "z –"]


def test_every_probe_of_every_audit_stands_on_the_page(made, page):
    """Measured, expected, by how much they may differ, the verdict, and the versions that have the bug."""
    plan, _ = made
    audits = {e.step.gates["audit"].digest for e in plan.entries[STUDY] if e.stage == "train"}
    assert page.count("2 of 2 probes pass") == len(audits) >= 2
    assert "lost: none" in page and "all 4 of 1" in page and "DeepSpeed 0.15.2 to 0.18.9" in page


def test_a_probe_that_failed_is_seen_and_an_audit_that_is_gone(tmp_path):
    train = tmp_path / "results" / "train" / "a-0123456789ab"
    step = tmp_path / "results" / "audit" / "single.1x1-0123456789ab"
    for folder in (train, step):
        folder.mkdir(parents=True)
    gate = {"digest": "0123456789ab", "directory": f"results/audit/{step.name}"}
    (train / "recipe.json").write_text(json.dumps({"gates": {"audit": gate}}))
    runs = [Result("train", run, 1, train) for run in ("a", "b", "a")]
    assert audits.audits(runs, str.upper) == [audits.Audit(step.name, ["A", "B"])]
    seal = {"engine": "zero2", "offload": True, "ranks": 2, "accumulation": 4, "packages": {"deepspeed": "0.18.9"}}
    (step / "recipe.json").write_text(json.dumps({"recipe": {"fingerprint": seal}}))
    failed = {"name": "accumulation", "passed": False, "found": "1 of rank 0"}
    (step / "audit.json").write_text(json.dumps([failed]))
    (step / "manifest.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "checked", lambda path: path)
        (found,) = audits.audits(runs, str.upper)
    assert found.runs == ["A", "B"] and found.passed == 0 and "deepspeed 0.18.9" in found.packages
    assert found.how == "engine zero2, CPU offload, 2 ranks, three micro-batches or more a step of each"
    assert found.probes.rows[0][4] == "FAILS" and "0.19.0" in found.probes.rows[0][5]
