"""Figures, claims and report on small synthetic results in the stages' own layout."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from scalpel import figures
from scalpel.config import PROJECTIONS
from scalpel.errors import UserError
from scalpel.report.build import build, drops_section
from scalpel.report.claims import ABSENT, APPEARS, CLAIMS, MLP, UNTESTABLE, Evidence, Score, sign
from scalpel.report.evidence import published

PUBLISHED = Path(__file__).parents[1] / "workflow" / "published" / "scalpel_vs_hammer.yaml"
RUNS = ["grpo", "sft_1ep", "sft_3ep", "sft_matched", "sft_frozen_mlp", "sft_qk_only"]
STEPS = {"grpo": 100, "sft_1ep": 35, "sft_3ep": 105, "sft_matched": 100, "sft_frozen_mlp": 105, "sft_qk_only": 105}
SCORES = {  # final scores: maths up, knowledge down, and how far for each run
    "base": {"math_500": 0.42, "gsm8k": 0.40, "mmlu": 0.88, "mmlu_pro": 0.70, "ifeval_prompt": 0.60},
    "grpo": {"math_500": 0.88, "gsm8k": 0.86, "mmlu": 0.86, "mmlu_pro": 0.68, "ifeval_prompt": 0.58},
    "sft_1ep": {"math_500": 0.45, "gsm8k": 0.43, "mmlu": 0.60, "mmlu_pro": 0.45, "ifeval_prompt": 0.40},
    "sft_3ep": {"math_500": 0.70, "gsm8k": 0.66, "mmlu": 0.45, "mmlu_pro": 0.30, "ifeval_prompt": 0.30},
    "sft_matched": {"math_500": 0.50, "gsm8k": 0.47, "mmlu": 0.55, "mmlu_pro": 0.40, "ifeval_prompt": 0.35},
    "sft_frozen_mlp": {"math_500": 0.66, "gsm8k": 0.64, "mmlu": 0.50, "mmlu_pro": 0.35, "ifeval_prompt": 0.30},
    "sft_qk_only": {"math_500": 0.40, "gsm8k": 0.41, "mmlu": 0.80, "mmlu_pro": 0.60, "ifeval_prompt": 0.50},
}
ALL = [*figures.NEEDS]


def checkpoint_steps(run):
    return sorted({round(STEPS[run] * i / 20) for i in range(1, 21)})


def synthetic(root: Path) -> dict[str, list[Path]]:
    """Result directories of a made-up laptop run, by role; evaluations lie in two shards."""
    rng = np.random.default_rng(0)
    inputs: dict[str, list[Path]] = {}

    def put(role, file, frame, shard=""):
        directory = root / (role.replace("/", "-") + shard)
        directory.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(directory / file)
        if directory not in inputs.setdefault(role, []):
            inputs[role].append(directory)

    data = root / "data"
    data.mkdir(parents=True)
    (data / "drops.csv").write_text(
        "reason,rows,meaning\nother_source,900,not the wanted source\ntoo_long,600,too many tokens\n"
        "kept,1500,trained on\nread,3000,all rows\n"
    )
    inputs["data/data"] = [data]
    for run in RUNS:
        steps = np.arange(1, STEPS[run] + 1)
        rise = 1 - np.exp(-steps / 25)
        log = {"step": steps, "learning_rate": 1e-4, "entropy": 0.5}
        if run == "grpo":
            log |= {
                "loss": rng.normal(0, 0.01, len(steps)),
                "grad_norm": rng.gamma(4, 0.05, len(steps)),
                "accuracy_reward": np.clip(0.4 + 0.5 * rise + rng.normal(0, 0.05, len(steps)), 0, 1),
                "format_reward": np.clip(0.6 + 0.4 * rise + rng.normal(0, 0.03, len(steps)), 0, 1),
            }
        else:
            log |= {
                "loss": 0.4 + 1.6 * (1 - rise) + rng.normal(0, 0.03, len(steps)),
                "grad_norm": 0.4 + 3 * (1 - rise) + rng.gamma(2, 0.05, len(steps)),
            }
        put(f"train/{run}", "log.parquet", pd.DataFrame(log))
        done = np.array(checkpoint_steps(run)) / STEPS[run]
        height = 0.08 if run == "grpo" else 1.2
        speed = 1.5 if run == "grpo" else 8
        kls, changes = [], []
        for step, share in zip(checkpoint_steps(run), done, strict=True):
            level = height * (1 - np.exp(-speed * share))
            kls += [
                (step, q, 100, 60, level * rng.uniform(0.7, 1.3), 0.7 * level * rng.uniform(0.7, 1.3))
                for q in range(30)
            ]
            for layer in range(4):
                for p, projection in enumerate(PROJECTIONS):
                    middle = 1.3 if layer in (1, 2) and p > 3 else 1.0
                    size = (0.0015 if run == "grpo" else 0.008) * share**0.6 * middle * (1.2 if p < 2 else 1.0)
                    changes.append((step, layer, projection, size * 10, 10.0, size * rng.uniform(0.95, 1.05)))
        columns = ["step", "question", "positions", "solution_positions", "kl", "kl_solution"]
        put(f"kl/{run}", "kl.parquet", pd.DataFrame(kls, columns=columns))
        columns = ["step", "layer", "projection", "change_norm", "base_norm", "relative"]
        put(f"weight_change/{run}", "weight_change.parquet", pd.DataFrame(changes, columns=columns))
    for run in ["base", *RUNS]:
        steps = [0] if run == "base" else checkpoint_steps(run)
        for shard, some in enumerate(np.array_split(steps, min(2, len(steps)))):
            rows = []
            for step in some:
                share = 0 if run == "base" else step / STEPS[run]
                for task, goal in SCORES[run].items():
                    start = SCORES["base"][task]
                    value = float(np.clip(start + (goal - start) * share**0.5, 0, 1))
                    error = (value * (1 - value) / 64) ** 0.5
                    if task == "ifeval_prompt":
                        for metric in ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc"):
                            rows.append((step, "ifeval", metric, value + 0.05 * ("inst" in metric), error, 48, 48))
                    else:
                        rows.append((step, task, "acc", value, error, 64, 64))
            columns = ["step", "task", "metric", "value", "stderr", "questions", "samples"]
            put(f"evaluate/{run}", "scores.parquet", pd.DataFrame(rows, columns=columns), f".{shard}")
    return inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("results"))


def some(inputs, name, shown=()):
    return {role: inputs[role] for role in figures.needs(name, RUNS, shown)}


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("name", ALL)
def test_figure_is_drawn_with_its_provenance(inputs, tmp_path, name):
    target = tmp_path / "deep" / name
    figures.render(name, some(inputs, name), figures.options({"dpi": 50}, name), target, {"digest": "0123456789ab"})
    assert sorted(p.name for p in target.parent.iterdir()) == [f"{name}.{kind}" for kind in ("pdf", "png", "svg")]
    for kind in ("pdf", "png", "svg"):
        assert b"0123456789ab" in target.with_suffix(f".{kind}").read_bytes()


def test_figure_is_the_same_on_every_run(inputs, tmp_path):
    for folder in ("a", "b"):
        figures.render("kl", some(inputs, "kl"), figures.options({}, "kl"), tmp_path / folder / "kl", {"digest": "x"})
    for kind in ("pdf", "png", "svg"):
        assert (tmp_path / "a" / f"kl.{kind}").read_bytes() == (tmp_path / "b" / f"kl.{kind}").read_bytes()


def test_options_change_the_figure(inputs):
    from scalpel.figures import kl, style

    chosen = {"title": "Mine", "width_inches": 5, "runs": ["sft_3ep"], "labels": {"sft_3ep": "hammer"}, "log_y": True}
    options = figures.options(chosen, "kl")
    with style.applied(options):
        figure = kl.draw(some(inputs, "kl"), options)
    assert figure.get_suptitle() == "Mine" and figure.get_figwidth() == 5
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and len(axes.lines) == 2
    assert "hammer" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_kl_figure_shows_the_means_over_questions(inputs):
    from scalpel.figures import kl, style

    options = figures.options({"runs": ["grpo"]}, "kl")
    with style.applied(options):
        lines = kl.draw(some(inputs, "kl"), options).axes[0].lines
    frame = pd.read_parquet(inputs["kl/grpo"][0] / "kl.parquet").groupby("step")
    np.testing.assert_allclose(lines[0].get_ydata(), frame["kl"].mean())
    np.testing.assert_allclose(lines[1].get_ydata(), frame["kl_solution"].mean())


def test_shards_of_an_evaluation_are_joined(inputs):
    from scalpel.figures import results

    assert len(inputs["evaluate/grpo"]) == 2
    frame = results.scores(inputs["evaluate/grpo"])
    assert sorted(frame["step"].unique()) == checkpoint_steps("grpo")
    assert set(frame["task"]) == {"math_500", "gsm8k", "mmlu", "mmlu_pro", "ifeval_prompt", "ifeval_instruction"}


def test_unknown_options_and_runs_are_errors(inputs):
    with pytest.raises(UserError, match="did you mean 'title'"):
        figures.options({"titel": "x"}, "study.yaml: figures.kl")
    with pytest.raises(UserError, match="width_inches"):
        figures.options({"width_inches": -1}, "kl")
    with pytest.raises(UserError, match="no figure is called"):
        figures.needs("kll", RUNS)
    with pytest.raises(UserError, match="luffy"):
        figures.needs("kl", RUNS, ("luffy",))
    with pytest.raises(UserError, match="none of grpo"):
        figures.needs("grpo_rewards", ["other"])
    with pytest.raises(UserError, match="luffy"):
        figures.render("kl", some(inputs, "kl"), figures.options({"runs": ["luffy"]}, "kl"), Path("x"), {})


def test_needs_name_the_runs_of_the_paper():
    assert figures.needs("norms_sft", RUNS) == ["weight_change/sft_3ep"]
    assert figures.needs("benchmarks", ["grpo", "sft_3ep"]) == ["evaluate/base", "evaluate/grpo", "evaluate/sft_3ep"]
    assert figures.needs("kl", ["a", "b"], ("b",)) == ["kl/b"]


def test_a_damaged_result_is_named(inputs, tmp_path):
    (tmp_path / "kl.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"kl\.parquet is damaged"):
        figures.render("kl", {"kl/grpo": [tmp_path]}, figures.options({}, "kl"), tmp_path / "kl", {})
    with pytest.raises(UserError, match=r"log\.parquet is missing"):
        figures.render("sft_loss", {"train/sft_3ep": [tmp_path]}, figures.options({}, "x"), tmp_path / "x", {})
    assert not list(tmp_path.glob("*.png"))


def test_the_plan_s_imports_are_light():
    code = "import sys, scalpel.figures; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# ---------------------------------------------------------------- claims


def layers(projections, values) -> dict[str, list[float]]:
    return {projection: list(values) for projection in projections}


def evidence(**changed) -> Evidence:
    """Evidence in which every claim but the last appears; `changed` replaces whole fields."""
    flat, hump = [1.0, 1.0, 1.0, 1.0], [1.0, 1.5, 1.5, 1.0]
    small = layers(PROJECTIONS, [value * 0.9 for value in hump]) | layers(MLP, flat)
    small |= layers(("q_proj", "k_proj"), [1.0, 2.0, 2.0, 1.0])
    large = layers(PROJECTIONS, [5 * value for value in hump])
    large |= layers(("q_proj", "k_proj"), [10 * value for value in hump])
    knowledge = ("mmlu", "mmlu_pro", "gpqa_diamond", "ifeval_prompt")
    levels = {  # MATH-500, GSM8k, knowledge
        "base": (0.30, 0.80, 0.60),
        "grpo": (0.38, 0.76, 0.55),
        "sft_1ep": (0.36, 0.70, 0.40),
        "sft_3ep": (0.45, 0.60, 0.30),
        "sft_frozen_mlp": (0.30, 0.65, 0.70),
        "sft_qk_only": (0.30, 0.75, 0.50),
    }
    scores = {
        run: {"math_500": Score(m, 0.01), "gsm8k": Score(g, 0.01), "aime24": Score(0.0, 0.0)}
        | {task: Score(k, 0.01) for task in knowledge}
        for run, (m, g, k) in levels.items()
    }
    fields = {
        "scores": scores,
        "kl": {
            "grpo": {25: 0.02, 50: 0.04, 75: 0.06, 100: 0.08},
            "sft_3ep": {25: 0.9, 50: 1.0, 75: 1.0, 100: 1.1},
        },
        "change": {"grpo": small, "sft_3ep": large},
        "log": {
            "grpo": {
                "accuracy_reward": list(np.linspace(0.3, 0.9, 40)),
                "format_reward": list(np.linspace(0.5, 1, 40)),
            },
            "sft_3ep": {"loss": list(np.linspace(2, 0.5, 40)), "grad_norm": [1.0] * 40},
        },
    }
    return Evidence(**(fields | changed))


def with_scores(**runs) -> Evidence:
    """Evidence with single scores replaced, e.g. grpo={"math_500": 0.9}."""
    whole = evidence().scores
    for run, values in runs.items():
        whole[run] = whole[run] | {task: Score(value, 0.01) for task, value in values.items()}
    return evidence(scores=whole)


def swapped(field, a="grpo", b="sft_3ep") -> Evidence:
    found = getattr(evidence(), field)
    return evidence(**{field: found | {a: found[b], b: found[a]}})


def changed(run, **projections) -> Evidence:
    found = evidence().change
    return evidence(change=found | {run: found[run] | projections})


def logged(run, **columns) -> Evidence:
    found = evidence().log
    return evidence(log=found | {run: found[run] | columns})


KNOWLEDGE = ("mmlu", "mmlu_pro", "gpqa_diamond", "ifeval_prompt")
CONTRARY = {  # claim -> evidence in which it does not appear
    "GRPO's accuracy": logged("grpo", accuracy_reward=[0.5] * 40),
    "SFT trains smoothly": logged("sft_3ep", grad_norm=[1.0, 1.0, 1.0, 9.0] * 10),
    "GRPO gives modest": with_scores(grpo={"math_500": 0.9}),
    "SFT gives larger": with_scores(grpo={"math_500": 0.9}),
    "Three epochs": with_scores(sft_1ep=dict.fromkeys(KNOWLEDGE, 0.1)),
    "GSM8k drops": with_scores(grpo={"gsm8k": 0.9}),
    "SFT degrades knowledge": with_scores(sft_3ep=dict.fromkeys(KNOWLEDGE, 0.9)),
    "AIME24": with_scores(grpo={"aime24": 0.4}),
    "KL grows": swapped("kl"),
    "SFT changes the weights": swapped("change"),
    "Queries and keys change most under GRPO": changed("grpo", v_proj=[9.0] * 4),
    "Queries and keys change most under SFT": changed("sft_3ep", v_proj=[90.0] * 4),
    "Query and key updates": changed("grpo", q_proj=[4.0, 1.0, 1.0, 4.0]),
    "SFT changes mid-layer": changed("sft_3ep", **layers(MLP, [9.0, 1.0, 1.0, 9.0])),
    "Training only queries": with_scores(sft_qk_only={"math_500": 0.9}),
    "Freezing MLPs is": with_scores(sft_frozen_mlp=dict.fromkeys(("math_500", "gsm8k", "aime24", *KNOWLEDGE), 0.9)),
    "Freezing MLPs lifts": with_scores(sft_frozen_mlp={"gpqa_diamond": 0.2}),
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claim_comes_out_every_way(claim):
    assert claim.outcome(Evidence()).verdict == UNTESTABLE
    if claim.text.startswith("Causal tracing"):
        assert claim.outcome(evidence()).verdict == UNTESTABLE
        return
    assert claim.outcome(evidence()).verdict == APPEARS, claim.outcome(evidence())
    contrary = next(found for start, found in CONTRARY.items() if claim.text.startswith(start))
    assert claim.outcome(contrary).verdict == ABSENT, claim.outcome(contrary)


def test_a_difference_within_its_error_is_not_told_from_noise():
    assert sign(Score(0.05, 0.03)) == 0 and sign(Score(0.07, 0.03)) == 1 and sign(Score(-0.07, 0.03)) == -1
    assert sign(Score(0.0, 0.0)) == 0
    near = with_scores(sft_3ep={"math_500": 0.385})
    claim = next(c for c in CLAIMS if c.text.startswith("SFT gives larger"))
    assert claim.outcome(near).verdict == UNTESTABLE and "noise" in claim.outcome(near).measured


def test_shallow_models_have_no_middle_layers():
    shallow = {run: layers(PROJECTIONS, [1.0, 2.0]) for run in ("grpo", "sft_3ep")}
    claim = next(c for c in CLAIMS if c.text.startswith("SFT changes mid-layer"))
    assert "2 layers" in claim.outcome(evidence(change=shallow)).measured


def test_the_paper_s_own_numbers_pass_what_it_reports_most_clearly():
    numbers = yaml.safe_load(PUBLISHED.read_text())
    json.dumps(numbers)
    found = {claim.text: claim.outcome(published(numbers)).verdict for claim in CLAIMS}
    for start in ("KL grows", "SFT changes the weights", "Queries and keys change most under GRPO", "SFT degrades"):
        assert [verdict for text, verdict in found.items() if text.startswith(start)] == [APPEARS]


def test_published_numbers_are_those_of_the_fact_sheet(shared_data):
    facts = yaml.safe_load((shared_data.parent / "facts" / "published-numbers.yaml").read_text())["scalpel_vs_hammer"]
    numbers = yaml.safe_load(PUBLISHED.read_text())
    assert numbers["benchmarks"] == facts["benchmarks"]
    assert numbers["weight_change"] == facts["norm_diff_final"]
    for ours, theirs in (("grpo", "grpo"), ("sft_3ep", "sft_3ep"), ("sft_lr_1e-6", "sft_lr_matched_1e-6")):
        curve = numbers["kl"][ours]
        assert dict(zip(curve["steps"], curve["values"], strict=True)) == facts["kl_base_to_checkpoint"][theirs]


# ---------------------------------------------------------------- report

FACTS = {
    "title": "Scalpel <vs.> Hammer",
    "scale": "laptop",
    "description": "a toy",
    "study": "scalpel_vs_hammer",
    "digest": "0123456789ab",
    "commit": "c0ffee",
    "runs": {run: {"method": run.split("_")[0], "learning_rate": 1e-4, "seed": 42, "epochs": None} for run in RUNS},
    "evaluation": {"tasks": {"mmlu": {"shots": 5, "samples": 1}}, "temperature": 0.6},
}


@pytest.fixture(scope="module")
def drawn(inputs, tmp_path_factory):
    """All figures as PNG files, in a folder of their own."""
    folder = tmp_path_factory.mktemp("figures")
    for name in ALL:
        figures.render(name, some(inputs, name), figures.options({"dpi": 60}, name), folder / name, {})
    return {name: folder / f"{name}.png" for name in ALL}


def test_report_is_one_file_with_everything(inputs, drawn, tmp_path):
    build(inputs, drawn, yaml.safe_load(PUBLISHED.read_text()), FACTS, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert page.count("data:image/png;base64,") == len(ALL)
    assert not re.search(r"(src|href)=[\"']?(?!data:)[a-z]", page) and "url(" not in page and "<script" not in page
    for claim in CLAIMS:
        assert html.escape(claim.text) in page
    assert "scaled replica" in page and "one seed" in page and "Scalpel &lt;vs.&gt; Hammer" in page
    assert "3,000" in page  # rows read: the drops add up
    assert "88.0 ± 4.1" in page and "40.2 ± 2.2" in page  # MATH-500 under GRPO, ours and the paper's
    assert len(re.findall(r"<t[dh]\b", page)) == len(re.findall(r"</t[dh]>", page))


def test_report_of_real_models_does_not_call_them_toys(inputs, drawn, tmp_path):
    build(inputs, drawn, {}, FACTS | {"scale": "cluster"}, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert "toy model" not in page and "One seed" in page


def test_a_missing_figure_is_named(inputs, drawn, tmp_path):
    with pytest.raises(UserError, match=r"gone\.png is missing"):
        build(inputs, {"kl": tmp_path / "gone.png"}, {}, FACTS, tmp_path / "index.html")


def test_drops_that_do_not_add_up_are_an_error(tmp_path):
    (tmp_path / "drops.csv").write_text("reason,rows,meaning\ntoo_long,3,x\nkept,4,y\nread,8,z\n")
    with pytest.raises(UserError, match="7 rows are accounted for and 8 were read"):
        drops_section(tmp_path)
    (tmp_path / "drops.csv").write_text("reason,rows\nkept,four\n")
    with pytest.raises(UserError, match="damaged"):
        drops_section(tmp_path)
