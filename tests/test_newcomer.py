"""The first hour: what README and docs tell to paste is planned, and what could not run is refused at once."""

import csv
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalpel.config.load import load
from scalpel.errors import UserError
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
PAGES = ("README.md", "docs/real-data.md")
BLOCK = r"(?s)```yaml\n(.*?)```"


def planned(raw: dict, root: Path = Path(".")) -> Plan:
    """As the Snakefile and `make preflight` plan."""
    plan = Plan(load(raw, WORKFLOW), WORKFLOW, root)
    refuse_what_cannot_run(plan)
    return plan


def blocks() -> list[tuple[str, str]]:
    found = [
        (page, text) for page in PAGES for text in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.S)
    ]
    assert len(found) >= 8
    return found


# ---------------------------------------------------------------- the pages' snippets

MATH = [
    {"problem": f"What is {n} + 1?", "solution": f"It is $\\boxed{{{n + 1}}}$.", "answer": f"{n + 1}"}
    for n in range(2000)
]
GSM8K = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(9)]
MMLU = [{"question": f"q{n}", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": n % 4} for n in range(9)]
ARC = [
    {"id": f"{n}", "question": f"q{n}", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    for n in range(9)
]


def openr1(rows: list[dict]) -> list[dict]:
    """Problems with solutions under OpenR1-Math-220k's columns."""
    verdicts = {"source": "cn_k12", "correctness_math_verify": [True], "is_reasoning_complete": [True]}
    return [{"problem": r["problem"], "answer": r["answer"], "generations": [r["solution"]]} | verdicts for r in rows]


def write_files(folder: Path, base: Path, rows=MATH, math=MATH, gsm8k=GSM8K, mmlu=MMLU) -> None:
    """Every file that the pages name, below `folder`."""

    def table(name: str, rows: list[dict]) -> None:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)

    table("rows.parquet", openr1(rows))
    table(
        "problems.parquet",
        [{"id": f"p{n}", "problem": r["problem"], "solution": r["solution"]} for n, r in enumerate(rows)],
    )
    table("math_500.parquet", math)
    table("test.parquet", gsm8k)
    table("train.parquet", gsm8k)
    table("mmlu.parquet", mmlu)
    table("mmlu_dev.parquet", mmlu)
    table("arc_test.parquet", ARC)
    table("arc_train.parquet", ARC)
    with open(folder / "exam.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerows([["text", "choices", "key"], ["one and one?", '["1", "2"]', "B"]])
    (folder / "tasks").mkdir()
    (folder / "tasks" / "data.jsonl").write_text('{"q": "one and one?", "a": "two"}\n')
    task = {
        "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
        "test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
    }  # fmt: skip
    (folder / "tasks" / "mine.yaml").write_text(yaml.safe_dump(task))
    shutil.copytree(base, folder / "DIR")
    config = json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 4}  # as deep as the scale expects
    (folder / "DIR" / "config.json").write_text(json.dumps(config))
    for step in (100, 200):
        shutil.copytree(base, folder / "trl_output" / f"checkpoint-{step}")
    branches = ("step-100", "step-200", "main")
    resolved = {f"someone/their-model@{branch}": f"{place:040x}" for place, branch in enumerate(branches, 1)}
    (folder / "revisions.yaml").write_text(yaml.safe_dump(resolved))


@pytest.fixture(scope="module")
def scratch(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    write_files(folder, tiny_base)
    return folder


@pytest.fixture(scope="module")
def scratch_of_real_files(tiny_base, shared_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    read = lambda name: pq.read_table(shared_data / name).to_pylist()  # noqa: E731
    rows = [row | {"answer": "1"} for row in read("numina_amc_aime/train.parquet")]
    gsm8k, mmlu = read("gsm8k/test_0000-0659.parquet"), read("mmlu/validation.parquet")
    write_files(folder, tiny_base, rows, read("math_500/test_000-249.parquet"), gsm8k, mmlu)
    return folder


@pytest.mark.parametrize("files", ["scratch", "scratch_of_real_files"])
@pytest.mark.parametrize(("page", "text"), blocks(), ids=lambda value: " ".join(value.split())[:40])
def test_what_the_pages_tell_to_paste_is_planned(page, text, files, request, monkeypatch):
    monkeypatch.chdir(request.getfixturevalue(files))
    plan = planned(yaml.safe_load(text))
    assert len(plan.steps) > (10 if "studies: [checkpoints]" in text else 30) and plan.drawings


# ---------------------------------------------------------------- what cannot run is said at once

OWN = {"kind": "files", "file": "test.parquet"}
ROWS = {"mine": {"source": {"kind": "parquet", "path": "rows.parquet"}, "filter": {"max_tokens": 176}}}
CANNOT_RUN = [
    ({"questions": {"gsm8k": None}}, "remove what asks for it: `overrides: {evaluation: {tasks: {gsm8k: null}}}`"),
    ({"questions": {"gsm8k": {"file": "absent.parquet"}}}, "absent.parquet does not exist"),
    ({"questions": {"gsm8k": {"file": "math_500.parquet"}}}, "math_500.parquet lacks column 'question'"),
    ({"questions": {"gsm8k": {"file": "math_500.parquet"}}}, "evaluation: {tasks: {gsm8k: null}}"),
    ({"questions": {"gsm8k": {"file": "revisions.yaml"}}}, ".parquet, .jsonl, .json, .csv files are read"),
    ({"questions": {"gsm8k": OWN}, "evaluation": {"tasks": {"gsm8k": {"shots": 2}}}}, "2 shots need as many examples"),
    ({"evaluation": {"tasks": {"gsm8k": {"shots": 100}}}}, "its question set has 16"),
    ({"evaluation": {"tasks": {"facts": {}}}}, "which only causal tracing reads"),
    ({"evaluation": {"tasks": {"mmlu": {"samples": 2}}}}, "`samples` is for what is answered in words"),
    ({"evaluation": {"tasks": {"gsm8k": {"formulation": "cloze"}}}}, "`formulation` is for multiple choice"),
    ({"evaluation": {"tasks": {"gsm8k": {"prompt": "{problem}"}}}}, "{problem} cannot be filled in"),
    ({"evaluation": {"tasks": {"gsm8k": {"prompt": "{question"}}}}, "a brace that is text is written twice"),
    ({"evaluation": {"tasks": {"gsm8k": {"prompt": "{question:99999999999}"}}}}, "cannot be filled in"),
    ({"kl": {"gsm8k": {}}}, "KL reads problems and solutions"),
    ({"datasets": {"mine": {"source": {"kind": "parquet", "path": "math_500.parquet"}, "filter": {"max_tokens": 176}}},
      "dataset": "mine"}, "lacks column 'source'"),
    ({"datasets": {"mine": ROWS["mine"] | {"filter": {"max_tokens": 176, "trace": "messages"}}}, "dataset": "mine"},
     "lacks column 'messages'"),
    ({"datasets": {"mine": ROWS["mine"] | {"filter": {}}}, "dataset": "mine"}, "methods.sft.max_tokens"),
    ({"datasets": {"mine": ROWS["mine"] | {"filter": {"max_tokens": 1000}}}, "dataset": "mine",
      "methods": {"sft": {"max_tokens": 1000}}}, "datasets.mine.filter.max_prompt_tokens to 960 or less"),
    ({"datasets": ROWS, "dataset": "mine", "methods": {"grpo": {"steps": 900}}},
     "2000 rows at most, 3 times at most, feed 750 steps, too few for its 900 steps"),
    ({"epochs": 1}, "it takes 3 epochs, the question order holds 1"),
    ({"methods": {"grpo": {"steps": 10}}}, "20 checkpoints do not fit into 10 steps"),
    ({"methods": {"grpo": {"inference": "vllm"}}}, "give `server: {gpus: 1}`"),
    ({"methods": {"grpo": {"loss_type": "bnpo", "generations": 16}}}, "loss_type bnpo"),
    ({"methods": {"grpo": {"max_completion_tokens": 1024}}}, "lower max_completion_tokens"),
    ({"train_settings": {"engine": "fsdp", "ranks": 2}}, "keeps no whole model to write completions with"),
    ({"studies": {"scalpel_vs_hammer": {"runs": {"sft_3ep": {"trainable": {"freeze_mlp_layers": [4]}}}}}},
     "the model has layers 0 to 3"),
    ({"models": {"toy": {"kind": "local", "path": "tasks"}}}, "tasks holds no config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "sentence"), CANNOT_RUN, ids=lambda value: str(value)[:50])
def test_what_cannot_run_is_refused_when_it_is_planned(overrides, sentence, scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    with pytest.raises(UserError) as caught:
        planned({"overrides": overrides})
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused_when_it_is_planned(scratch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scratch / "DIR", "bare")
    for path in Path("bare").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"models\.toy\.path: bare holds no tokenizer"):
        planned({"overrides": {"models": {"toy": {"kind": "local", "path": "bare"}}}})


def test_the_digest_of_a_model_follows_its_tokenizer_and_template(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "model")
    model = {"kind": "local", "path": str(tmp_path / "model"), "chat_template": "own"}
    digests = []
    for name in (None, "merges.txt", "tokenizer.model", "chat_template.jinja"):
        if name:
            (tmp_path / "model" / name).write_text("other")
        plan = Plan(load({"overrides": {"models": {"toy": model}}}, WORKFLOW), WORKFLOW, tmp_path)
        digests.append(plan.materials.base("toy").digest)
    assert len(set(digests)) == 4


def test_exhibits_without_a_benchmark_are_refused_when_they_are_planned(scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    none = {"mmlu": None, "mmlu_pro": None, "ifeval": None}
    with pytest.raises(
        UserError, match=r"exhibits\.\w+: kept names none of the tasks asked, which are math_500, gsm8k"
    ):
        planned({"overrides": {"evaluation": {"tasks": none}}})
    planned({"overrides": {"evaluation": {"tasks": none | {"mmlu": {}}}}})


def test_a_file_for_one_benchmark_leaves_the_others_the_toy_s(scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    plan = planned({"overrides": {"questions": {"math_500": {"file": "math_500.parquet"}}}})
    kinds = {step.name: "toy" in step.inputs for step in plan.steps.values() if step.stage == "questions"}
    assert not kinds["math_500"] and kinds["gsm8k"] and kinds["mmlu"]


def test_every_scale_can_run():
    for scale in ("laptop", "workstation", "gpu", "cluster"):
        planned({"scale": scale})
    for variant in (WORKFLOW / "as_published").glob("*.yaml"):
        scale = yaml.safe_load(variant.read_text())["scale"]
        planned({"scale": scale, "as_published": variant.stem})


def test_toy_examples_are_as_many_as_the_plan_says(tiny_sets):
    from collections import Counter

    from scalpel.config.models import TOY_EXAMPLES
    from scalpel.evaluation.question_set import open_set

    for name, directory in tiny_sets.items():
        if name not in ("facts",):
            examples = open_set(directory).examples()
            each = Counter(row.get("subject", row.get("category")) for row in examples)
            assert set(each.values()) == ({TOY_EXAMPLES[name]} if name in TOY_EXAMPLES else set())


def test_columns_that_a_prompt_may_name_are_those_of_a_laid_out_row():
    from scalpel.evaluation.formats import FORMATS
    from scalpel.evaluation.tasks import COLUMNS
    from tests.test_questions import ROWS as EACH

    for form, columns in COLUMNS.items():
        made = set(FORMATS[form].check(EACH[form], "x, row 0"))
        assert made | {"choices", "kwargs"} >= set(columns) >= made, form
