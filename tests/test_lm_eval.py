"""Tasks of lm-eval: found without importing it, laid out to need nothing else, run by it on our engine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from scalpel.chat import load_tokenizer, render
from scalpel.config.evaluation import EvaluationRecipe, EvaluationSettings
from scalpel.errors import UserError
from scalpel.evaluation import evaluate
from scalpel.evaluation.lm_eval_files import find, parse
from scalpel.evaluation.question_set import open_set
from scalpel.evaluation.questions import prepare
from scalpel.weights import load_model

SETTINGS = EvaluationSettings(batch_size=16)
ROOT = Path(__file__).resolve().parent.parent

COLOURS = """
include: ../common/base.yaml
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: data/test.jsonl
    train: data/train.jsonl
    unused: data/absent.jsonl
doc_to_text: !function utils.asked
num_fewshot: 1
"""
COMMON = """
task: base
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "never used"
doc_to_choice: !function utils.options
doc_to_target: "{{right}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
SUMS = """
task: sums
dataset_path: parquet
dataset_kwargs: {data_files: {test: sums.parquet}}
output_type: generate_until
test_split: test
doc_to_text: "What is {{a}} + {{b}}?"
doc_to_target: "{{a + b}}"
generation_kwargs: {until: ["\\n", "6"], max_gen_toks: 12}
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]
  - name: all
    filter: [{function: take_first}]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
process_results: !function grading.score
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks of the user's own: one whose include lies elsewhere, with code of the same name; one that writes."""
    folder = tmp_path_factory.mktemp("mine")
    write(folder / "colours" / "task.yaml", COLOURS)
    write(folder / "common" / "base.yaml", COMMON)
    write(folder / "colours" / "utils.py", "def asked(doc):\n    return 'Colour of ' + doc['thing'] + '?'\n")
    write(folder / "common" / "utils.py", "def options(doc):\n    return [' ' + c for c in doc['colours']['text']]\n")
    rows = [{"thing": f"thing {n}", "colours": {"text": ["red", "light green"]}, "right": n % 2} for n in range(5)]
    for split, part in (("test", rows), ("train", rows[:2])):
        write(folder / "colours" / "data" / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    write(folder / "sums.yaml", SUMS)
    write(
        folder / "grading.py",
        "import os\n\n\ndef score(doc, results):\n    if doc['a'] == 3:\n        os._exit(1)\n"
        "    return {'exact_match': float(results[0] == str(doc['a'] + doc['b']))}\n",
    )
    pq.write_table(pa.Table.from_pylist([{"a": n, "b": 2} for n in range(5)]), folder / "sums.parquet")
    return folder


def recipe_of(found):
    return {"format": "lm_eval", "task": found.name, "yaml": found.text, "code": found.code}


def laid_out(found, out):
    out.mkdir()
    prepare(recipe_of(found), found.files, out)
    return out


# ---------------------------------------------------------------- finding


def test_a_yaml_is_found_with_its_includes_code_and_data(folder):
    found = find(str(folder / "colours" / "task.yaml"), {}, "questions.x")
    assert found.name == "colours" and set(found.code) == {"utils.py", "utils1.py"}
    config = parse(found.text)
    assert config["output_type"] == "multiple_choice" and "include" not in config and "dataset_path" not in config
    assert config["doc_to_choice"] == "utils.options" and config["doc_to_text"] == "utils1.asked"
    assert found.text.count("!function") == 2 and str(folder) not in found.text
    assert {split: path.resolve() for split, path in found.files.items()} == {
        split: folder / "colours" / "data" / f"{split}.jsonl" for split in ("test", "train")
    }
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved, dirs_exist_ok=True)
    again = find(str(moved / "colours" / "task.yaml"), {}, "questions.x")
    assert again[:3] == found[:3]  # the digest does not depend on where the files lie
    write(moved / "common" / "utils.py", "def options(doc):\n    return ['no']\n")
    assert find(str(moved / "colours" / "task.yaml"), {}, "questions.x").code != found.code


def test_comments_and_the_order_of_keys_do_not_count(folder, tmp_path):
    text = (
        "# a comment\n"
        + "\n".join(reversed(SUMS.strip().split("\n")[:3]))
        + "\n"
        + "\n".join(SUMS.strip().split("\n")[3:])
    )
    shutil.copy(folder / "grading.py", tmp_path)
    assert find(str(write(tmp_path / "x.yaml", text)), {}, "q").text == find(str(folder / "sums.yaml"), {}, "q").text


def test_the_plan_imports_neither_torch_nor_lm_eval(folder):
    code = (
        "import sys; from pathlib import Path; from scalpel.evaluation import lm_eval_files as f;"
        "f.find('arc_challenge', {'test': Path('x')}, 'q');"
        "print([m for m in ('torch', 'lm_eval', 'pyarrow', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_task_that_lm_eval_ships_is_found_by_name(tmp_path):
    files = {"test": tmp_path / "a.parquet", "train": tmp_path / "b.parquet"}
    found = find("arc_challenge", files, "q")
    assert found.name == "arc_challenge" and found.files == files and not found.code
    assert parse(found.text)["doc_to_choice"] == "{{choices.text}}"  # of the file it includes
    assert find("leaderboard_mmlu_pro", {"test": tmp_path}, "q").code.keys() == {"utils.py"}
    assert find("mmlu_abstract_algebra", {"test": tmp_path}, "q").name == "mmlu_abstract_algebra"


def test_where_a_name_was_found_is_remembered(monkeypatch, tmp_path):
    from scalpel.evaluation import lm_eval_files

    first = find("arc_challenge", {"test": tmp_path}, "q")
    find("gsm8k", {"test": tmp_path}, "q")
    monkeypatch.setattr(lm_eval_files, "_search", lambda *_: pytest.fail("searched again"))
    assert find("arc_challenge", {"test": tmp_path}, "q") == first
    find("gsm8k", {"test": tmp_path}, "q")


@pytest.mark.parametrize(
    ("task", "files", "words"),
    [
        ("arc_challenge", {}, r"loads 'allenai/ai2_arc' from the hub; give its data as `files: \{test: <file>, train"),
        ("arc_challenge", {"train": Path("x")}, "is evaluated on split 'test'; give its file as files.test"),
        ("arc_challenge", {"test": Path("x"), "dev": Path("y")}, "no split 'dev'; it has test, train, validation"),
        ("ai2_arc", {}, "is a group or tag of tasks"),
        ("mmlu", {}, "is a group or tag of tasks"),
        ("no_such_task", {}, "ships no task 'no_such_task'"),
        ("no/such/file.yaml", {}, "does not exist"),
        ("wikitext", {}, "output_type 'loglikelihood_rolling'"),
        ("humaneval", {"test": Path("x")}, "runs code that the model wrote"),
        ("squadv2", {}, "is programmed as a Python class"),
    ],
)
def test_what_cannot_be_run_is_refused(task, files, words):
    with pytest.raises(UserError, match=words) as error:
        find(task, files, "questions.mine")
    assert str(error.value).startswith("questions.mine: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("group: mine\ntask:\n  - a\n  - task: b\n", r"is a group of tasks \(a, b\)"),
        ("task: x\ntest_split: test\ndataset_path: json\n", "names no single file for split"),
        ("task: x\ntest_split: test\ndataset_path: json\ndataset_kwargs: {data_files: {test: [a, b]}}\n", "no single"),
        ("task: x\ntest_split: test\ncustom_dataset: !function os.walk\n", "makes its data itself"),
        ("task: x\ntest_split: test\ndoc_to_text: !function absent.f\n", "calls absent.f, but there is no"),
        ("task: x\ndataset_path: json\n", "names neither a test_split nor a validation_split"),
        ("task: x\ntest_split: test\ndoc_to_image: img\n", "needs images"),
        ("task: [\n", "in line 2"),
        ("- a\n", "is not a mapping"),
        ("include: x.yaml\n", "includes itself"),
        ("include: absent.yaml\n", "cannot be read"),
        ("task: !!python/object/apply:os.getcwd []\n", "python/object"),
    ],
)
def test_yamls_that_do_not_do_are_named(text, words, tmp_path):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(UserError, match=words) as error:
        find(str(path), {}, "questions.mine")
    assert str(tmp_path) in str(error.value)


# ---------------------------------------------------------------- laid out


def test_a_task_is_laid_out_to_need_nothing_else(folder, tmp_path):
    copy = tmp_path / "given"
    shutil.copytree(folder, copy)
    out = laid_out(find(str(copy / "colours" / "task.yaml"), {}, "q"), tmp_path / "set")
    shutil.rmtree(copy)
    moved = tmp_path / "elsewhere" / "set"
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    found = open_set(moved)
    assert found.format == "lm_eval" and len(found.rows()) == 5 and len(found.examples()) == 2
    assert found.rows()[0]["colours"] == {"text": ["red", "light green"]}
    text = pq.read_table(moved / "text.parquet").column("question").to_pylist()
    assert text == [f"Colour of thing {n}?" for n in range(5)]
    notes = json.loads((moved / "notes.json").read_text())
    assert notes == {"format": "lm_eval", "task": "colours", "questions": 5, "examples": 2}


def test_tasks_that_lm_eval_cannot_load_are_refused_when_laid_out(folder, tmp_path):
    for number, (old, new) in enumerate(
        [("metric: acc\n", "metric: no_such_metric\n"), ("{{right}}", "{{ right | nothing }}")]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        base = copy / "common" / "base.yaml"
        base.write_text(base.read_text().replace(old, new))
        with pytest.raises(UserError, match="lm-eval cannot load task colours"):
            laid_out(find(str(copy / "colours" / "task.yaml"), {}, "q"), copy / "set")
    found = find(str(folder / "colours" / "task.yaml"), {}, "q")
    with pytest.raises(UserError, match=r"needs 1 few-shot examples of split 'train'; give `files\.train`"):
        laid_out(found._replace(files={"test": found.files["test"]}), tmp_path / "alone")


# ---------------------------------------------------------------- run


@pytest.fixture(scope="module")
def sets(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets")
    yamls = {"colours": folder / "colours" / "task.yaml", "sums": folder / "sums.yaml"}
    return {name: laid_out(find(str(path), {}, "q"), out / name) for name, path in yamls.items()}


@pytest.fixture(scope="module")
def evaluated(tiny_base, other_base, sets, tiny_sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    recipe = EvaluationRecipe.model_validate({"tasks": {"colours": {}, "sums": {}, "math_500": {"max_new_tokens": 8}}})
    evaluate([(0, tiny_base), (7, other_base)], sets | tiny_sets, recipe, SETTINGS, out)
    return out


def read(out, name, **where):
    frame = pq.read_table(out / f"{name}.parquet").to_pandas()
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def by_loop(model, tokenizer, prompt, choice):
    """Log-likelihood in float64, one sequence at a time; trailing blanks of the prompt belong to the choice."""
    context = tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]
    assert ids[: len(context)] == context
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(len(context), len(ids)))


def test_multiple_choice_of_a_task_of_the_users_own(evaluated, tiny_base):
    tokenizer, model = load_tokenizer(tiny_base), load_model(tiny_base).double()
    scores = read(evaluated, "scores", task="colours", step=0).set_index("metric")
    assert set(scores.index) == {"acc", "acc_norm"} and set(scores.questions) == {5}
    for metric, chars in (("acc", (1, 1)), ("acc_norm", (4, 12))):
        rows = read(evaluated, "samples", task="colours", step=0, metric=metric)
        assert list(rows.question) == list(range(5)) and rows.prompt.str.count("Colour of").eq(2).all()
        right = []
        for row in rows.itertuples():
            values = [by_loop(model, tokenizer, row.prompt, choice) for choice in (" red", " light green")]
            assert np.allclose(values, row.choice_logprobs, atol=1e-3)
            assert row.completion == (" red", " light green")[int(np.argmax(values))]
            assert row.gold == (" red", " light green")[row.question % 2]
            right.append(float(np.argmax(np.array(values) / chars) == row.question % 2))
        assert list(rows.score) == right
        assert scores.loc[metric, "value"] == pytest.approx(np.mean(right))
        assert scores.loc[metric, "stderr"] == pytest.approx(np.std(right, ddof=1) / 5**0.5)


def test_generation_stops_at_the_tasks_strings_and_is_graded_in_bounds(evaluated, tiny_base):
    """Its scoring ends the process on one question, which then counts as wrong, alone."""
    from scalpel.inference import EngineSettings, open_engine
    from scalpel.inference.requests import Request

    engine = open_engine("transformers", tiny_base, EngineSettings())
    tokenizer = engine.tokenizer
    for kind in ("number", "all"):
        rows = read(evaluated, "samples", task="sums", step=0, metric=f"exact_match,{kind}")
        assert list(rows.question) == list(range(5))
        for row in rows.itertuples():
            prompt = render(tokenizer, f"What is {row.question} + 2?")
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            [[one]] = engine.complete([Request(ids, (0,), 1, 12)], 0.0, 1.0)
            whole = tokenizer.decode(one.ids, skip_special_tokens=True)
            assert row.prompt == prompt and row.completion == whole.split("\n")[0].split("6")[0]
            assert row.gold == str(row.question + 2)
        assert rows.score.iloc[3] == 0.0
        [score] = read(evaluated, "scores", task="sums", step=0, metric=f"exact_match,{kind}").to_dict("records")
        assert score["value"] == pytest.approx(rows.score.mean()) and score["samples"] == 5
    notes = json.loads((evaluated / "notes.json").read_text())
    assert notes["0"]["samples_not_graded"] == {"sums": {"exceeded time or memory": 2}}


def test_each_checkpoint_has_its_own_weights(evaluated):
    first, second = (read(evaluated, "samples", task="colours", step=step, metric="acc") for step in (0, 7))
    assert not np.allclose(np.stack(first.choice_logprobs), np.stack(second.choice_logprobs), atol=1e-3)
    assert set(read(evaluated, "scores").task) == {"colours", "sums", "math_500"}


def test_shots_and_limit_of_the_recipe(tiny_base, sets, tmp_path):
    recipe = EvaluationRecipe.model_validate({"tasks": {"colours": {"shots": 2, "limit": 2}}})
    evaluate([(0, tiny_base)], sets, recipe, SETTINGS, tmp_path)
    rows = read(tmp_path, "samples", metric="acc")
    assert list(rows.question) == [0, 1] and rows.prompt.str.count("Colour of").eq(3).all()


def test_sampling_follows_the_seed_alone(folder, tiny_base, tmp_path):
    text = SUMS.replace("max_gen_toks: 12", "max_gen_toks: 12, do_sample: true, temperature: 1.0").replace('"6"', '"~"')
    shutil.copy(folder / "grading.py", tmp_path)
    shutil.copy(folder / "sums.parquet", tmp_path)
    sets = {"sums": laid_out(find(str(write(tmp_path / "x.yaml", text)), {}, "q"), tmp_path / "set")}
    written = []
    for size, seed in ((16, 1), (2, 1), (16, 2)):
        recipe = EvaluationRecipe.model_validate({"tasks": {"sums": {}}, "seed": seed})
        evaluate([(0, tiny_base)], sets, recipe, EvaluationSettings(batch_size=size), tmp_path)
        written.append(list(read(tmp_path, "samples").completion))
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"samples": 2}, "`samples` is the YAML's to say"),
        ({"formulation": "cloze"}, "`formulation` is the YAML's to say"),
        ({"prompt": "{a}"}, "`prompt` is the YAML's to say"),
    ],
)
def test_what_the_yaml_says_is_not_said_twice(task, words, tiny_base, sets, tmp_path):
    with pytest.raises(UserError, match=words):
        evaluate([(0, tiny_base)], sets, EvaluationRecipe.model_validate({"tasks": {"sums": task}}), SETTINGS, tmp_path)


def test_generation_arguments_that_no_engine_has_are_refused(folder, tiny_base, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "sums.yaml"
    path.write_text(SUMS.replace("max_gen_toks: 12", "max_gen_toks: 12, repetition_penalty: 2"))
    sets = {"sums": laid_out(find(str(path), {}, "q"), tmp_path / "set")}
    with pytest.raises(UserError, match="asks for 'repetition_penalty', which no engine here has"):
        evaluate([(0, tiny_base)], sets, EvaluationRecipe.model_validate({"tasks": {"sums": {}}}), SETTINGS, tmp_path)


def test_arc_challenge_as_lm_eval_ships_it(shared_data, tiny_base, tmp_path):
    """Real rows put into the hub's columns; acc and acc_norm against a float64 loop."""
    for split, name in (("test", "val"), ("train", "train")):
        rows = pq.read_table(shared_data / "arc_challenge" / f"{name}.parquet").to_pylist()
        table = [
            {
                "id": row["id"],
                "question": row["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
                "choices": {"text": row["choices"], "label": list("ABCDE"[: len(row["choices"])])},
                "answerKey": "ABCDE"[row["gold"]],
            }
            for row in rows
        ]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{split}.parquet")
    found = find("arc_challenge", {split: tmp_path / f"{split}.parquet" for split in ("test", "train")}, "q")
    sets = {"arc": laid_out(found, tmp_path / "set")}
    recipe = EvaluationRecipe.model_validate({"tasks": {"arc": {"limit": 6, "shots": 1}}})
    evaluate([(0, tiny_base)], sets, recipe, SETTINGS, tmp_path)
    tokenizer, model = load_tokenizer(tiny_base), load_model(tiny_base).double()
    docs = pq.read_table(tmp_path / "test.parquet").to_pylist()[:6]
    for metric in ("acc", "acc_norm"):
        rows = read(tmp_path, "samples", metric=metric)
        right = []
        for row, doc in zip(rows.itertuples(), docs, strict=True):
            texts = doc["choices"]["text"]
            values = np.array([by_loop(model, tokenizer, row.prompt, text) for text in texts])
            assert np.allclose(values, row.choice_logprobs, atol=1e-3) and doc["question"] in row.prompt
            lengths = np.array([len(text) for text in texts]) if metric == "acc_norm" else 1
            right.append(float("ABCDE"[int(np.argmax(values / lengths))] == doc["answerKey"]))
        assert list(rows.score) == right
        [score] = read(tmp_path, "scores", metric=metric).to_dict("records")
        assert score["value"] == pytest.approx(np.mean(right)) and score["questions"] == 6
