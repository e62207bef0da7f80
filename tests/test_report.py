"""The page: one file with everything, built from the study."""

import datetime
import hashlib
import html
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scalpel.claims.estimate import Sample
from scalpel.claims.judge import APPEARS, NOT_RUN, UNDECIDED, Evidence
from scalpel.claims.scalpel_vs_hammer import CLAIMS
from scalpel.errors import UserError
from scalpel.exhibits import spent
from scalpel.exhibits.embedded import current
from scalpel.exhibits.render import render
from scalpel.exhibits.result import Result
from scalpel.exhibits.results import PROJECTIONS, Results, final
from scalpel.exhibits.style import PALETTE
from scalpel.report import answer, audits, cite, cost, course, findings, origins, runs, setup, tables
from scalpel.report.build import ROWS, light, report
from scalpel.report.drops import drops
from scalpel.report.made import made as made_of
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


def build(made, study: str = STUDY) -> str:
    """The page's text, after all exhibits of the study are made."""
    plan, root = made
    plan.record()
    for (owner, name), planned in plan.drawings.items():
        if owner == study and name != "report":
            render(root / planned.recipe_path)
    report(root / plan.drawings[study, "report"].recipe_path)
    return page_of(made, study).read_text()


def page_of(made, study: str = STUDY) -> Path:
    return made[1] / "results" / "report" / study / "index.html"


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
    assert sorted(p.name for p in page_of(made).parent.iterdir()) == ["gallery.html", "index.html", "index.json"]
    assert page.count("data:image/png;base64,") == 9 and page.count('<section id="') == 14
    assert not re.search(r'src="(?!data:)', page) and "url(" not in page and "<script" not in page
    for target in re.findall(r'href="([^"]*)"', page):
        where = page_of(made).parent / target
        assert f'id="{target[1:]}"' in page if target.startswith("#") else where.exists(), target
    assert "default-src 'none'" in page, "a browser would refuse to load anything"
    for claim in CLAIMS:
        assert html.escape(claim.text).replace("&#x27;", "&#39;") in page
        assert html.escape(claim.place).replace("&#x27;", "&#39;") in page
    assert "scaled replica" in page and "There is one seed" in page
    assert "88.0 ± 4.1" in page and "40.2 ± 2.2" in page  # MATH-500 under GRPO, ours and the paper's
    pictures = [file.stat().st_size for file in (made[1] / "results" / "figures" / STUDY).glob("*.png")]
    shown = [len(text) * 3 / 4 for text in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert sum(shown) < 0.6 * sum(pictures)
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    assert current(page_of(made))["digest"] == made[0].drawings[STUDY, "report"].digest


def test_the_gallery_has_every_exhibit_beside_its_numbers(made, page):
    place = page_of(made).with_name("gallery.html")
    text = place.read_text()
    names = re.findall(r'<section id="(\w+)">', text)
    figures = [name for name in study()["exhibits"] if (made[1] / f"results/figures/{STUDY}/{name}.png").exists()]
    assert names == figures + [name for name in study()["exhibits"] if name not in figures]
    assert text.count("data:image/png;base64,") == 9 and "<script" not in text and "Scalpel &lt;vs.&gt; Hammer" in text
    for name, section in zip(names, text.split('<section id="')[1:], strict=True):
        links = re.findall(r'href="([^"]*)"', section.split("</section>")[0])
        assert f'href="#{name}"' in text
        (numbers,) = [(place.parent / link).resolve() for link in links if link.endswith(".csv")]
        rows = len(pd.read_csv(numbers, skiprows=1))
        assert f"<code>{name}.csv</code>, {rows} row" in section
        assert section.split("<tbody>")[1].count("<tr") == min(rows, ROWS)
        assert (rows > ROWS) == (f"the first {ROWS}<" in section) and all(
            (place.parent / link).exists() for link in links
        )
    parser = Balance()
    parser.feed(text)
    assert not parser.open


def test_pictures_on_the_page_keep_the_colours_of_runs(made):
    """Within 16 of 255, whatever else a picture holds."""
    for file in (made[1] / "results" / "figures" / STUDY).glob("*.png"):
        with Image.open(file) as whole, Image.open(io.BytesIO(light(file))) as few:
            before, after = (np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int) for image in (whole, few))
        for color in PALETTE:
            wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
            there = (before == wanted).all(axis=1)
            assert not there.any() or np.abs(after[there] - wanted).max() <= 16, (file.name, color)


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


def test_the_page_begins_with_the_question_its_answer_and_the_picture(page):
    text = html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page[page.index("<header>") : page.index("<nav")]))
    )
    assert "What do GRPO and SFT, given the same questions, each do to a language model?" in text
    number = r"[+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]"
    found = re.search(
        rf"GRPO changes MATH-500 by ({number}) points and the mean of MMLU, MMLU-Pro and IFEval \(prompts\) by "
        rf"({number}); SFT, 1 epoch by {number} and {number}\. The control \(SFT, GRPO's rate\) changes them by "
        rf"{number} and {number}: ",
        text,
    )
    assert found, text
    gain, low, high = (float(part.replace("−", "-")) for part in re.findall(r"[+−]\d+\.\d", found[1]))
    assert low < 46 < high and low < gain < high, "the made-up scores are .42 and .88"
    assert "95% intervals" in text and "one seed a run" in text and "nothing here is about a 7B model" in text
    assert page.index("<header>") < page.index('<section id="frontier"') < page.index("</header>")


def test_what_the_control_keeps_is_said_with_its_interval():
    """Wholly above zero, wholly below, or neither."""

    def sample(run: str, share: float) -> Sample:
        units = np.array([np.arange(400) < 400 * share]).astype(float)
        return Sample(run, (1,), units.mean(axis=1), units, tuple(range(400)), trained=run != "base", share=True)

    shares = {"base": 0.8, "grpo": 0.75, "worse": 0.3, "better": 0.95, "alike": 0.7525}
    evidence = Evidence({run: {"mmlu": sample(run, s), "math_500": sample(run, s)} for run, s in shares.items()})
    scales = answer.Scales(evidence, ("math_500",), ("mmlu",), str.upper)

    def said(control: str) -> str:
        return scales.compared(control, "grpo").replace("\N{NO-BREAK SPACE}", " ")

    assert "GRPO still keeps more of the latter (GRPO minus control: +45.0 [" in said("worse")
    assert "it keeps more of the latter than GRPO (GRPO minus control: −20.0 [" in said("better")
    assert "whether it or GRPO keeps more of the latter is undecided" in said("alike")
    assert scales.has("grpo") and not scales.has("absent") and not scales.has(None)


def test_who_wins_at_equal_budgets_is_counted():
    columns = ["budget", "whose", "run", "step", "gain", "kept", "gain − first", "kept − first", "gain − whose"]
    rows = [
        ("8 asked", "C", "A", "1", "+1.0 [-1.0, +3.0]", "-2.0 [-3.0, -1.0]", "–", "–", "-1.0"),
        ("8 asked", "C", "B", "1", "+9.0 [+8.0, +9.9]", "-9.0 [-9.9, -8.0]", "+8.0 [+5.0, +9.0]", "-7.0 [-9.0, -5.0]",
         "+7.0 [+1.0, +9.0]"),
        ("8 asked", "C", "C", "1", "+2.0 [-5.0, +9.0]", "-1.0 [-9.0, +8.0]", "+1.0 [-5.0, +7.0]", "+1.0 [-5.0, +9.0]",
         "–"),
        ("8 asked", "C", "D", "no log", "–", "–", "–", "–", "–"),
        ("2 FLOPs", "A and C", "A", "1", "+3.0", "-2.0", "–", "–", "–"),
        ("2 FLOPs", "A and C", "C", "1", "-1.0", "-1.0", "-4.0", "+1.0", "-4.0"),
        ("4 FLOPs", "B", "A", "none within it: its first took 9", "–", "–", "–", "–", "–"),
        ("4 FLOPs", "B", "B", "1", "-1.0", "-1.0", "–", "–", "–"),
        ("4 FLOPs", "B", "C", "1", "+5.0", "-1.0", "–", "–", "+6.0"),
        ("5 seconds", "A", "A", "1", "+3.0", "-2.0", "–", "–", "–"),
        ("seconds", "D", "D", "no clock", "–", "–", "–", "–", "–"),
    ]  # fmt: skip
    said = answer.at_equal_budgets(tables.Table([tables.Column(name) for name in columns], rows))
    assert [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in said] == [
        "Within 8 asked, what C spent in all, B gains most, +9.0 [+8.0, +9.9] points (+7.0 [+1.0, +9.0] more than C); "
        "of 2 others 1 gain more than A and 0 less, 0 keep more and 1 less (intervals without 0).",
        "Within 2 FLOPs, what A and C spent in all, A gains most, +3.0 points; of 1 others 0 gain more than A and 0 "
        "less, 0 keep more and 0 less (intervals without 0). Within 4 FLOPs, what B spent in all, C gains most, +5.0 "
        "points (+6.0 more than B); A has no checkpoint to compare (none within it: its first took 9).",
    ]


def test_what_bugs_would_have_changed_is_said():
    columns = ["run", "gain − without bugs", "gain − best", "best"]
    rows = [
        ("then RL", "–", "+3.0 [+1.0, +5.0]", "HPT"),
        ("then RL, A", "-9.0 [-9.9, -8.0]", "-6.0 [-7.0, -5.0]", "HPT"),
        ("SFT", "–", "+0.5 [-1.0, +2.0]", "HPT"),
        ("SFT, A", "-9.0 [-9.9, -8.0]", "-8.5 [-9.0, -8.0]", "HPT"),
        ("SFT, B", "-1.0 [-2.0, -0.5]", "-0.5 [-2.0, +1.0]", "HPT"),
        ("SFT, C", "not asked", "not asked", "HPT"),
        ("other", "–", "not asked", "HPT"),
    ]
    (said,) = answer.with_bugs(tables.Table([tables.Column(name) for name in columns], rows))
    assert said.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-") == (
        "What bugs of SFT do to the difference to the mixed-policy method that gains most (HPT), in points: "
        "of then RL it is +3.0 [+1.0, +5.0] without bugs and -6.0 [-7.0, -5.0] (then RL, A) with them; of SFT "
        "it is +0.5 [-1.0, +2.0] without bugs and -8.5 [-9.0, -8.0] (SFT, A) to -0.5 [-2.0, +1.0] (SFT, B) "
        "with them. With 2 of 3 of these bugs the verdict would have been another (more, less or undecided)."
    )
    assert answer.with_bugs(tables.Table([tables.Column(name) for name in columns], rows[-1:])) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"runs": ["gpro"]}, "answer: no run of it is named 'gpro'; did you mean 'grpo'"),
        ({"control": "sft_matchd"}, "did you mean 'sft_matched'"),
        ({"bugs": "equal_budget"}, "bugs: 'equal_budget' is no exhibit of kind bug_effect"),
        ({"equal": "frontier"}, "equal: 'frontier' is no exhibit of kind equal_budget"),
        ({"picture": "fronteer"}, "picture: no exhibit of it is named 'fronteer'; did you mean 'frontier'"),
    ],
)
def test_an_answer_about_what_is_not_there_is_refused(wrong, sentence, tmp_path):
    workflow = synthetic.workflow_with(tmp_path, synthetic.study_file() | {"answer": wrong})
    with pytest.raises(UserError) as error:
        synthetic.plan_of(tmp_path, workflow=workflow)
    assert sentence in str(error.value)


def test_every_run_is_shown_after_each_share_of_its_steps(made, page):
    plan, root = made
    entries = json.loads(json.dumps([entry.record() for entry in plan.entries[STUDY]]))
    results = Results.of_entries(entries, root / "results")
    moments = course.course(results)
    count = max(synthetic.COUNTS["sft_own_all"], synthetic.CHECKPOINTS)
    assert [moment.percent for moment in moments] == [round(100 * i / count) for i in range(1, count + 1)]
    assert [column.name for column in moments[0].table.columns][:5] == [
        "run", "step", "KL (nats)", "weights (%)", "MATH-500 (%)",
    ]  # fmt: skip
    last = {row[0]: row for row in moments[-1].table.rows}
    assert list(last) == ["base", *synthetic.STEPS] and last["base"][1:4] == ["0", "–", "–"]
    scores = final(results.scores()).set_index(["run", "task"])["value"]
    kl = final(results.kl()).set_index("run")["kl"]
    for run, steps in synthetic.STEPS.items():
        assert last[run][1] == str(steps) and last[run][4] == f"{100 * scores[run, 'math_500']:.1f}"
        assert last[run][2] == f"{kl[run]:.3g}"
    first = {row[0]: row for row in moments[0].table.rows}
    assert first["grpo"][2] == "–", "its first checkpoint comes after a tenth of its steps"
    section = page[page.index('<h2 id="course">') : page.index('<h2 id="completions">')]
    assert section.count('type="radio"') == count and section.count(" checked") == 1
    assert [int(share) for share in re.findall(r"<caption>After (\d+)% of", section)] == [m.percent for m in moments]
    assert f"#at{count}:checked ~ .moments > :nth-child({count})" in section


def test_completions_of_runs_stand_side_by_side(page):
    section = page[page.index('<h2 id="completions">') : page.index('<h2 id="runs">')]
    assert re.findall(r"<summary>([^;<]*)", section) == ["MATH-500", "GSM8k", "IFEval"]
    first = section.split("<details")[1]
    assert first.count('<div class="said">') == 1 + 3 * 3, "the base model, and three checkpoints of three runs"
    assert "&lt;think&gt;step 100 &amp;" in first and "What is &lt;it&gt;?" in first
    last = re.findall(r"step (\d+): scored (\S+)<", first)[-3:]
    assert [int(step) for step, _ in last] == [100, 35, 35] and len({score for _, score in last}) > 1


def test_the_page_says_when_and_with_what_its_results_were_made(tmp_path):
    for name, day in (("train/b-1", 2), ("kl/c-1", 3), ("base/a-1", 1)):
        (tmp_path / name).mkdir(parents=True)
        started = datetime.datetime(2026, 5, day, 12, tzinfo=datetime.UTC).timestamp()
        about = {"started": started, "seconds": 60.0 * day, "commit": "c" * 40, "host": "node", "python": "3.11.7"}
        packages = {"packages": {"torch": "2.13.0" if day < 3 else "2.14.0"}}
        (tmp_path / name / "provenance.json").write_text(json.dumps(about | packages))
    (tmp_path / "data" / "d-1").mkdir(parents=True)
    found = made_of([tmp_path / name for name in ("train/b-1", "kl/c-1", "train/b-1", "data/d-1", "base/a-1")])
    assert [row[0] for row in found.results.rows] == ["base/a-1", "train/b-1", "kl/c-1"]
    assert found.dates == ["2026-05-01", "2026-05-03"] and found.took == "6:00" and found.damaged == ["data/d-1"]
    assert found.packages == ["Python 3.11.7", "torch 2.13.0 and 2.14.0"]
    assert made_of([]).dates == []
    page = tmp_path / "report" / "mine"
    assert made_of([tmp_path / "train" / "b-1"], page).results.rows[0][0] == '<a href="../../train/b-1">train/b-1</a>'
    assert tables.link(tmp_path / "absent", page, "<x>") == "<x>"


def test_what_each_run_took_is_added_up_and_every_result_counted_once(tmp_path):
    """By hand: two seeds that learn from the same answers, a given run, and a result that does not say."""

    def result(name: str, run: str, seed: int = 1, chain=(), gpus: int = 0, **about) -> Result:
        step = tmp_path / name
        step.mkdir(parents=True, exist_ok=True)
        (step / "recipe.json").write_text(json.dumps({"settings": {"gpus": gpus, "nodes": 2} if gpus else {}}))
        if about:
            (step / "provenance.json").write_text(json.dumps(about))
        return Result(step.parent.name, run, seed, step, chain=chain)

    answers = result("generate/base-1", "answers", 0, seconds=30.0, cpu_seconds=60.0, host="a")
    found = [
        result("train/x-1", "x", 1, (answers.step,), seconds=100.0, cpu_seconds=150.0, host="a", gpus=4),
        result("train/x-2", "x", 2, (answers.step,), seconds=200.0, cpu_seconds=150.0, host="b", gpus=4),
        result("evaluate/x-1", "x", 1, (answers.step,), seconds=50.0, host="b"),
        result("given/y-1", "y", 0, seconds=1.0, cpu_seconds=1.0),
        result("kl/y-1", "y", 0),
        answers,
    ]
    table = cost.cost(Results(found), str.upper)
    assert [column.name for column in table.columns] == [
        "run", "seed", "before it", "making it", "measuring it", "both", "CPU time", "GPU time", "FLOPs counted",
        "machine",
    ]  # fmt: skip
    assert [tuple(row) for row in table.rows] == [
        ("X", "1", "0:30", "1:40", "0:50", "2:30", "≥ 2:30", "13:20", "–", "a, b"),
        ("X", "2", "0:30", "3:20", "–", "3:20", "2:30", "26:40", "–", "b"),
        ("Y", "–", "–", "0:01", "–", "≥ 0:01", "≥ 0:01", "≥ 0:00", "–", "–"),
        ("generate answers", "–", "–", "0:30", "–", "0:30", "1:00", "0:00", "–", "a"),
        ("all of these, each once", "", "", "", "", "≥ 6:21", "≥ 6:01", "≥ 40:00", "–", "a, b"),
    ]
    assert cost.cost(Results([result("kl/z-1", "z")])) is None


def test_flops_are_those_that_were_counted(made, page, tmp_path):
    """Of a training run, and of the answers another one learns from; none of what only measures."""
    plan, root = made
    shutil.copytree(root, tmp_path / "copy")
    entries = json.loads(json.dumps([entry.record() for entry in plan.entries[STUDY]]))
    results = Results.of_entries(entries, tmp_path / "copy" / "results")
    for result in results.found:
        (result.step / "provenance.json").write_text(json.dumps({"seconds": 1.0, "cpu_seconds": 2.0}))
    rows = {row[0]: row for row in cost.cost(results).rows}
    (grpo,) = [result for result in results.of("train") if result.run == "grpo"]
    assert rows["grpo"][-2] == f"{spent.totals(grpo)['counted']:.3g}" and rows["generate base.s42"][-2] == "1e+09"
    assert rows["base"][-2] == "–" and rows["sft_own_all"][2] == "0:01"
    assert 'id="cost"' not in page, "no result here says what it took"


def test_the_page_says_how_to_cite_it(page):
    section = html.unescape(page[page.index('<h2 id="cite">') :])
    assert "Neel Rajani, Aryo Pradipta Gema, Seraphina Goldfarb-Tarrant and Ivan Titov. Scalpel vs. Hammer" in section
    assert section.count("@article{") == 2 and section.count("@software{") == 1 and "2604.23747" in section
    for entry in re.findall(r"<pre[^>]*>(.*?)</pre>", section, re.DOTALL):
        assert entry.count("{") == entry.count("}")
    assert cite.works("abc")[0].bibtex.count("commit abc") == 1 and "commit" not in cite.works(None)[0].text
    assert cite.works(None, Path("absent.cff")) == []


def test_results_files_and_folders_are_linked_where_they_are_told(page):
    def links(begin: str, end: str) -> list[str]:
        return re.findall(r'href="([^"]*)"', page[page.index(f'id="{begin}"') : page.index(f'id="{end}"')])

    completions, data, audit = links("completions", "runs"), links("data", "audit"), links("audit", "setup")
    assert len(completions) == 3 * (1 + 3 * 3) and all(link.endswith("/samples.parquet") for link in completions)
    assert {Path(link).name for link in data} >= {"drops.csv", "kept.parquet"}
    assert audit and all(re.fullmatch(r"\.\./\.\./audit/[^/]*/audit.json", link) for link in audit)


def test_every_run_has_its_recipe_beside_the_paper_s_and_its_curves(made, page):
    plan, root = made
    config = plan.config.studies[STUDY]
    recipe, paper = config.runs["grpo"].recipe.model_dump(mode="json"), config.papers["grpo"]
    other = {name for name in recipe if recipe[name] != paper[name]}
    part = page[page.index('id="run-grpo"') :]
    part = part[: part.index("</details>")]
    fields = re.findall(r'<th scope="row">([\w.]+)</th>', part)
    assert "learning_rate" in other and {field.split(".")[0] for field in fields} == other
    assert f">{recipe['generations']}<" in part and f">{paper['generations']}<" in part
    assert "accuracy reward of GRPO: " in part and "MATH-500 (%) of GRPO: " in part
    step = next(e.step for e in plan.entries[STUDY] if (e.stage, e.run) == ("train", "grpo"))
    log = pd.read_parquet(root / step.directory / "log.parquet").sort_values("step")["accuracy_reward"]
    svg = part[part.index("accuracy reward of GRPO") :]
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', svg)[1].split()]
    assert len(points) == 100 and points[0][0] == 0 and points[-1][0] == 240
    heights = 60 * (1 - (log - log.min()) / (log.max() - log.min()))
    np.testing.assert_allclose([y for _, y in points], heights, atol=0.051)
    assert f"{log.iloc[0]:.3g} at step 1, {log.iloc[-1]:.3g} at step 100" in svg
    assert f'href="../../train/{Path(step.directory).name}"' in part
    assert (page_of(made).parent / f"../../train/{Path(step.directory).name}").is_dir()


def test_runs_that_the_paper_s_scale_has_not_are_said(tmp_path):
    results = Results([])
    here = {"mine": {"method": "sft", "seeds": [1], "epochs": 3}, "same": {"method": "sft", "seeds": [1]}}
    mine, same = runs.runs(results, here, {"same": here["same"]}, tmp_path)
    assert mine.differs is None and same.differs.rows == [] and mine.curves == []
    assert runs._curve("x", [pd.DataFrame({"step": [1, 2], "x": [math.nan, 3]})]) is None, "one value is no curve"
    flat = runs._curve("x", [pd.DataFrame({"step": [1, 2, 3], "x": [2.0, math.nan, 2.0]})])
    assert flat.lines == ["0,60.0 240,60.0"] and flat.said == "2 at step 1, 2 at step 3; between 2 and 2"


def test_exhibits_stand_in_the_study_s_order_with_number_and_caption(page):
    assert re.findall(r'<section id="(\w+)">', page) == list(study()["exhibits"])
    assert re.findall(r"<h3>((?:Figure|Table) \d|asked)</h3>", page) == [
        "Figure 1", "Figure 2", "Figure 3", "Table 1", "Figure 4", "Table 2", "Figure 5", "Figure 6", "Table 3",
        "asked",
    ]  # fmt: skip


def test_pictures_say_what_they_show_to_those_who_cannot_see_them(made, page):
    """Numbers as the exhibits' own tables and the results have them; the whole caption where there is no sentence."""
    alts = [html.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', page)]
    by_name = {alt.partition(":")[0]: alt for alt in alts}
    plan, root = made
    entries = json.loads(json.dumps([entry.record() for entry in plan.entries[STUDY]]))
    results = Results.of_entries(entries, root / "results")
    kl = final(results.kl()).set_index("run")
    (said,) = tables.texts_of(kl.loc[["grpo"], "kl"], kl.loc[["grpo"], "kl_stderr"])
    assert f"nats: GRPO {said}; SFT, 1 epoch " in by_name["Figure 4"] and "on MATH-500" in by_name["Figure 4"]
    moved = final(results.weight_change().query("run == 'grpo'"))
    change = f"{100 * moved['relative'].mean():.4g}"
    assert f"in percent: GRPO {change}; SFT, 1 epoch " in by_name["norms_course"]
    means = 100 * moved.groupby("projection")["relative"].mean()
    most = (
        f"most {PROJECTIONS[means.idxmax()]} {means.max():.4g}; least {PROJECTIONS[means.idxmin()]} {means.min():.4g}"
    )
    assert f"At the last checkpoint of GRPO, means over layers in percent: {most}." in by_name["Figure 5"]
    assert "MATH-500: highest GRPO 88.0 ± 4.1; lowest base 42.0 ± 6.2" in by_name["Figure 3"]
    assert re.search(r"in points: GRPO 46\.0 ± \d\.\d and \d\.\d ± \d\.\d; SFT, 1 epoch ", by_name["frontier"])
    assert by_name["Figure 2"].startswith(
        "Figure 2: Loss and gradient norm of SFT. Moving averages at the last steps: "
    )
    assert len(alts) == 9 and not any(re.search(r"\b(nan|inf)\b", alt) for alt in alts)


def test_a_finding_is_of_what_is_shown_and_finite(tmp_path):
    """Means over seeds with their error; nothing of what is nan, or of a kind that has no sentence."""

    def said(kind: str, frame: dict, **options) -> str:
        (tmp_path / "x.csv").write_text("# {}\n" + pd.DataFrame(frame).to_csv(index=False))
        return findings.finding(kind, tmp_path / "x.csv", options, str.upper)

    course = {"run": ["a", "a", "b", "b"], "seed": [1, 2, 1, 2], "step": [5, 6, 5, 5]}
    frame = course | {"relative": [0.01, 0.03, 0.02, math.nan], "source": "ours"}
    assert said("weight_change_course", frame).endswith("in percent: A 2.0 ± 1.0.")
    assert said("weight_change_course", frame | {"relative": [math.nan] * 4}) == ""
    scores = course | {"task": "mmlu", "value": 0.5, "stderr": 0.1}
    assert said("benchmarks", scores) == "Scores of the last checkpoints in percent. MMLU: 50 ± 10 of all."
    one = {name: values[:1] if isinstance(values, list) else [values] for name, values in scores.items()}
    assert "MMLU: A 50 ± 10." in said("final_scores", one)
    two = {"run": ["a", "a"], "seed": [1, 2], "step": [5, 6], "gain": [0.1, 0.3], "loss": [0.0, 0.04]}
    moved = two | {"gain_mean_stderr": 0.05, "loss_mean_stderr": 0.013}
    assert said("frontier", moved).endswith("in points: A 20.0 ± 5.0 and 2.0 ± 1.3."), "the figure's whiskers"
    assert said("benchmarks", {"run": ["a"]}) == said("mine.py", scores) == ""
    twice = {name: values * 2 if isinstance(values, list) else values for name, values in scores.items()}
    assert said("benchmarks", twice) == "", "several values of one seed"


def test_rows_are_headed_by_what_they_are_of(page):
    """By the run, or by the field, the reason or the probe; numbers are no headings."""

    def columns(*names: str) -> tables.Table:
        return tables.Table([tables.Column(name, name == "step") for name in names], [])

    assert [columns(*names).heading for names in (("budget", "run"), ("field", "here"), ("step", "x"), ())] == [
        1, 0, None, None,
    ]  # fmt: skip
    for body in re.findall(r"<tbody.*?</tbody>", page, re.DOTALL):
        for row in re.findall(r"<tr[ >].*?</tr>", body, re.DOTALL):
            assert row.count("<th ") == 1, row
    claims = page[page.index('<table class="claims"') :].split("</table>")[0]
    for tag, role in (("tr", "row"), ("td", "cell"), ("tbody", "rowgroup")):
        assert claims.count(f"<{tag}") == claims.count(f'<{tag} role="{role}"') > 0


def test_tables_call_runs_by_their_labels(page):
    section = page[page.index('<section id="asked">') :].split("</section>")[0]
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", section.split("<tbody>")[1])
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
    models = {"models": {"start": {"kind": "local", "path": str(saved_model(tmp_path))}}, "model": "start"}
    raw = {"scale": "real", "overrides": {"studies": {STUDY: None}} | models}
    page = build(world(tmp_path, raw, workflow=workflow))
    assert "toy model" not in page and "one seed.</strong>" not in page and 'id="claims"' not in page
    assert "a (2); b (1)." in page and "mean of e² + s²/n" in page and "The paper" not in page
    assert '<th scope="row">seeds</th>' in page and "1, 2" in page


def saved_model(folder: Path) -> Path:
    """What planning takes for a model on disk."""
    place = folder / "my_model"
    place.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (place / name).write_text("{}")
    (place / "model.safetensors").write_text("weights")
    return place


def own_checkpoints(root: Path, **overrides) -> str:
    """The text of the page of the README's five lines, at the scale they have by default."""
    saved = saved_model(root)
    for step in (5, 10):
        shutil.copytree(saved, root / "output" / f"checkpoint-{step}")
    base = {"models": {"start": {"kind": "local", "path": str(saved)}}, "model": "start"}
    given = {"mine": {"given": {"kind": "local", "path": str(root / "output")}}}
    raw = {"studies": ["checkpoints"], "overrides": base | overrides, "runs": given}
    page = build(world(root, raw), "checkpoints")
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page[page.index("<body") :])))
    assert "checkpoints made elsewhere, scale laptop: the local model start" in text.lower()
    for untrue in ("scaled replica", "toy model", "trained from nothing", "0.6-million", "two CPU cores"):
        assert untrue not in page.lower()
    return text


def test_a_model_of_ones_own_is_called_no_toy_but_the_toy_s_questions_are(tmp_path):
    text = own_checkpoints(tmp_path)
    assert "The questions of MATH-500, GSM8k, MMLU, MMLU-Pro, IFEval are generated" in text
    assert "Base model: the local model start." in text and "must not be compared with scores on the public" in text


def test_questions_of_ones_own_are_called_by_their_files(tmp_path):
    (tmp_path / "mine.parquet").write_text("questions")
    sha256 = hashlib.sha256(b"questions").hexdigest()[:12]
    tasks = ("math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval")
    text = own_checkpoints(tmp_path, questions={task: {"file": str(tmp_path / "mine.parquet")} for task in tasks})
    assert "generated" not in text.lower() and f"MATH-500 from mine.parquet (sha256 {sha256})" in text


def test_a_toy_model_asked_files_is_still_a_toy():
    toy, file = {"toy": True, "what": "x"}, {"toy": False, "what": "a.parquet (sha256 1)"}
    found = origins.origins({"models": {"toy": toy}, "questions": {"gsm8k": file}, "rows": True}, "Scaled replica")
    assert not found.toy_world and found.caution == "A toy model: nothing here is about a 7B model."
    assert (found.description, found.questions, found.rows) == ("Scaled replica", {"GSM8k": file["what"]}, True)
    whole = origins.origins({"models": {"toy": toy}, "questions": {"gsm8k": toy}, "rows": True}, "Scaled replica")
    assert whole.toy_world and "generated world" in whole.caution and not whole.rows
    both = origins.origins({"models": {"toy": toy, "x": file}, "questions": {}, "rows": False}, "Scaled replica")
    assert both.description == "x; a.parquet (sha256 1)" and both.toy_models == ["toy"] and both.caution == ""


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
    whole = (figures / "kl.csv").read_bytes()
    (figures / "kl.csv").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"kl\.csv: "):
        report(recipe)
    (figures / "kl.csv").write_bytes(whole)
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
    base = {"digest": "1123456789ab", "directory": "results/base/toy-1123456789ab"}
    (step / "recipe.json").write_text(json.dumps({"recipe": {"fingerprint": seal}, "inputs": {"base": base}}))
    failed = {"name": "accumulation", "passed": False, "found": "1 of rank 0"}
    (step / "audit.json").write_text(json.dumps([failed]))
    (step / "manifest.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "checked", lambda path: path)
        (found,) = audits.audits(runs, str.upper)
    assert found.runs == ["A", "B"] and found.passed == 0 and "deepspeed 0.18.9" in found.packages
    how = "engine zero2, CPU offload, 2 ranks, three micro-batches or more a step of each"
    assert found.how == f"{how}, tokenizer and template of toy-1123456789ab"
    assert found.probes.rows[0][4] == "FAILS" and "0.19.0" in found.probes.rows[0][5]
