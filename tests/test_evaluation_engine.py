"""Evaluation end to end on the tiny base, and the harnesses' numbers recomputed by independent, slow code."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalpel.config import EvaluationRecipe, EvaluationSettings
from scalpel.errors import UserError
from scalpel.evaluation import evaluate, prepare

TASKS = {
    "math_500": {"samples": 3, "max_new_tokens": 24},
    "aime24": {"samples": 2, "max_new_tokens": 24, "limit": 1},
    "gsm8k": {"shots": 2, "max_new_tokens": 24},
    "gpqa_diamond": {"max_new_tokens": 24},
    "mmlu": {"shots": 2},
    "mmlu_pro": {"shots": 2},
    "ifeval": {"max_new_tokens": 24},
}
RECIPE = EvaluationRecipe.model_validate({"tasks": TASKS})
SETTINGS = EvaluationSettings(batch_size=16)


@pytest.fixture(scope="module")
def files(tiny_world, tmp_path_factory):
    files = {path.stem: path for path in (tiny_world / "world" / "evaluation").glob("*.parquet")}
    gpqa = tmp_path_factory.mktemp("gpqa") / "gpqa.parquet"
    row = {"Question": "What is 2 + 2?", "Correct Answer": "4"} | {f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)}
    pq.write_table(pa.Table.from_pylist([row, row | {"Question": "What is 1 + 3?"}]), gpqa)
    return files | {"gpqa_diamond": gpqa}


@pytest.fixture(scope="module")
def data(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("questions")
    prepare(files, out)
    return out


@pytest.fixture(scope="module")
def other(tiny_base, tmp_path_factory):
    """A second checkpoint: the base's weights, shaken."""
    import torch
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_base, directory)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(directory / "model.safetensors")
    shaken = {name: w + 0.03 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(shaken, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def evaluated(tiny_base, other, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    evaluate([(0, tiny_base), (7, other)], data, RECIPE, SETTINGS, out)
    return out


@pytest.fixture(scope="module")
def samples(evaluated):
    return pq.read_table(evaluated / "samples.parquet").to_pandas()


@pytest.fixture(scope="module")
def engine(tiny_base):
    from scalpel.evaluation import lighteval_tasks  # noqa: F401  lifts LightEval's version check
    from scalpel.evaluation.engine import Engine

    return Engine(tiny_base, RECIPE, SETTINGS)


def test_scores_of_all_tasks(evaluated, samples, data):
    scores = pq.read_table(evaluated / "scores.parquet").to_pylist()
    assert {(row["step"], row["task"]) for row in scores} == {(step, task) for step in (0, 7) for task in TASKS}
    for row in scores:
        assert 0 <= row["value"] <= 1 and math.isfinite(row["stderr"]) and row["stderr"] >= 0
    for task, options in TASKS.items():
        asked = pq.ParquetFile(data / f"{task}.parquet").metadata.num_rows
        rows = samples[(samples.task == task) & (samples.step == 7)]
        if task != "ifeval":
            assert rows.metric.nunique() == 1
            wanted = min(asked, options.get("limit", asked)) * options.get("samples", 1)
            assert len(rows) == wanted == len(rows.drop_duplicates(["question", "sample"]))
        assert rows.prompt.str.len().min() > 0 and rows.completion.notna().all()
    math_rows = samples[(samples.task == "math_500") & (samples.step == 0)]
    means = math_rows.groupby("question").score.mean()
    [score] = [row for row in scores if row["task"] == "math_500" and row["step"] == 0]
    assert score["value"] == pytest.approx(means.mean()) and score["stderr"] == pytest.approx(means.sem())
    notes = json.loads((evaluated / "notes.json").read_text())
    assert "ifeval_sentences" in notes and set(notes) >= {"0", "7"}


def test_each_checkpoint_has_its_own_weights_and_no_shard_matters(evaluated, samples, other, data, tmp_path):
    math_rows = samples[samples.task == "math_500"]
    assert list(math_rows[math_rows.step == 0].completion) != list(math_rows[math_rows.step == 7].completion)
    # alone, first in its process, and in batches of another size
    evaluate([(7, other)], data, RECIPE, EvaluationSettings(batch_size=5), tmp_path)
    alone = pq.read_table(tmp_path / "samples.parquet").to_pandas()
    together = samples[samples.step == 7].reset_index(drop=True)
    columns = ["task", "question", "sample", "prompt", "completion", "metric", "score"]
    assert alone[columns].equals(together[columns])
    for mine, theirs in zip(alone.choice_logprobs.dropna(), together.choice_logprobs.dropna(), strict=True):
        assert np.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("task", ["mmlu", "mmlu_pro"])
def test_multiple_choice_equals_a_float64_loop(task, samples, tiny_base, data):
    """No batch, no cache, no harness: the log-likelihood of every choice, one forward pass each."""
    import torch
    from transformers import AutoModelForCausalLM

    from scalpel.chat import load_tokenizer

    tokenizer = load_tokenizer(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).eval()
    rows = samples[(samples.task == task) & (samples.step == 0)]
    for row in rows.head(4).itertuples():
        choices = [(" " if task == "mmlu" else "") + letter for letter in "ABCDEFGHIJ"[: len(row.choice_logprobs)]]
        context = tokenizer(row.prompt.rstrip(), add_special_tokens=False)["input_ids"]
        values = []
        for choice in choices:
            ids = tokenizer(row.prompt + choice, add_special_tokens=False)["input_ids"]
            assert ids[: len(context)] == context
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(sum(logits[i - 1, ids[i]].item() for i in range(len(context), len(ids))))
        assert np.allclose(values, row.choice_logprobs, atol=1e-3)
        assert choices[int(np.argmax(values))] == row.completion
        assert row.score == float(row.completion == row.gold)


def test_math_scores_agree_with_math_verify(samples):
    from scalpel.data.answers import Grader

    rows = samples[samples.task == "math_500"]
    with Grader() as grader:
        verdicts = grader.grade_many(list(zip(rows.gold, rows.completion, strict=True)))
    boxed = rows.completion.str.contains("<answer>") | ~rows.completion.str.contains(r"\d")
    assert [float(v) for v, use in zip(verdicts, boxed, strict=True) if use] == list(rows.score[boxed])


def test_grades_of_known_completions(monkeypatch):
    """LightEval's extraction with the newer latex2sympy; a completion that would hang is wrong, alone."""
    from scalpel.evaluation import grading, lighteval_tasks

    monkeypatch.setattr(grading, "SECONDS", 6.0)
    known = [
        ("5", "<think>\n14 - 9 = 5\n</think>\n<answer>\n5\n</answer>", 1.0),
        (r"\frac{1}{2}", "so it is $0.5$", 1.0),
        (r"\sqrt{2}", r"the answer is $\boxed{\sqrt 2}$", 1.0),
        ("12", r"Therefore, the final answer is: $\boxed{13}$.", 0.0),
        ("12", r"$\boxed{9^{9^{9^{9}}}}$", 0.0),
        ("12", "", 0.0),
        ("(1,2)", r"$\boxed{(1, 2)}$", 1.0),
    ]
    docs = [lighteval_tasks.math_prompt({"problem": "?", "answer": gold}, "math_500") for gold, _, _ in known]
    responses = [grading.ModelResponse(text=[text]) for _, text, _ in known]
    results, exceeded = grading.grade(docs, responses, [lighteval_tasks.avg_at_n(1)])
    assert [next(iter(result.values())) for result in results] == [score for _, _, score in known]
    assert exceeded <= 1 and [r.sample_scores for r in responses] == [[score] for _, _, score in known]


def test_a_grading_child_that_dies_costs_one_question():
    import os

    from scalpel.evaluation import grading

    class Deadly:
        metric_name, batched_compute = "deadly", False

        def compute_sample(self, model_response, doc):
            if doc.query == "die":
                os._exit(9)
            return {"deadly": 1.0}

    docs = [grading.Doc(query=q, choices=["1"], gold_index=0) for q in ("a", "die", "b")]
    results, exceeded = grading.grade(docs, [grading.ModelResponse(text=["x"]) for _ in docs], [Deadly()])
    assert [r["deadly"] for r in results] == [1.0, 0.0, 1.0] and exceeded == 1


def test_prompts_are_the_chat_templates_own(samples, tiny_base, data):
    from scalpel.chat import load_tokenizer, token_ids

    tokenizer = load_tokenizer(tiny_base)
    rows = samples[(samples.task == "math_500") & (samples["sample"] == 0) & (samples.step == 0)].sort_values(
        "question"
    )
    problems = pq.read_table(data / "math_500.parquet")["problem"].to_pylist()
    assert len(rows) == len(problems)
    for prompt, problem in zip(rows.prompt, problems, strict=True):
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == token_ids(tokenizer, problem)


def test_greedy_completions_equal_transformers_generate(engine, data, monkeypatch):
    """Shared prefix, padding inside the prompt, in-place cache and rows that leave change nothing."""
    import torch

    from scalpel.chat import token_ids

    monkeypatch.setattr(engine, "recipe", RECIPE.model_copy(update={"temperature": 0.0}))
    questions = pq.read_table(data / "questions.parquet")["question"].to_pylist()[:12]
    prompts = [token_ids(engine.tokenizer, question) for question in questions]
    mine = engine.complete(prompts, [np.zeros((2, 80))] * len(prompts))
    for prompt, completions in zip(prompts, mine, strict=True):
        ids = torch.tensor([prompt])
        theirs = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False, pad_token_id=1
        )[0, len(prompt) :].tolist()
        end = engine.tokenizer.eos_token_id
        theirs = theirs[: theirs.index(end)] if end in theirs else theirs
        assert completions == [theirs, theirs]


def test_sampling_follows_the_nucleus():
    """Evenly spaced draws hit every token of the nucleus in proportion to its probability, and no other."""
    import torch
    from scalpel.sampling import pick

    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 2
    probabilities = (logits[0].double() / RECIPE.temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    kept, total = [], 0.0
    for token in order.tolist():  # the smallest set that holds top_p of the mass
        kept.append(token)
        total += probabilities[token].item()
        if total >= RECIPE.top_p:
            break
    n = 20000
    picked = pick(logits.expand(n, -1), (torch.arange(n) + 0.5).double() / n, RECIPE.temperature, RECIPE.top_p)
    counts = torch.bincount(picked, minlength=30).double() / n
    for token in range(30):
        wanted = probabilities[token].item() / total if token in kept else 0.0
        assert counts[token].item() == pytest.approx(wanted, abs=2 / n)


def test_half_a_batch_is_tried_when_memory_is_short():
    import torch

    from scalpel.evaluation.engine import _batches

    def work(part):
        if len(part) > 2:
            raise torch.OutOfMemoryError("no")
        return dict.fromkeys(part, 1)

    done = {}
    for part in _batches(list(range(11)), 11, work):
        done |= part
    assert list(done) == list(range(11))


# ---------------------------------------------------------------- bad input


def changed(files, name, tmp_path, change):
    rows = pq.read_table(files[name]).to_pylist()
    change(rows)
    path = tmp_path / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {name: path}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mmlu", lambda rows: rows[1].update(answer=4), "row 1"),
        ("mmlu", lambda rows: rows[2].update(choices=["a", "b"]), "row 2"),
        ("mmlu", lambda rows: [row.pop("subject") for row in rows], "'subject'"),
        ("mmlu_pro", lambda rows: rows[0].update(answer="K"), "row 0"),
        ("gsm8k", lambda rows: rows[3].update(answer="twelve"), "row 3"),
        ("aime24", lambda rows: rows[0].update(answer="none"), "row 0"),
        ("math_500", lambda rows: rows[1].update(answer=""), "row 1"),
        ("ifeval", lambda rows: rows[2].update(kwargs__json="{"), "row 2"),
    ],
)
def test_bad_rows_are_named(files, tmp_path, name, change, words):
    given = changed(files, name, tmp_path, change)
    with pytest.raises(UserError) as error:
        prepare(given, tmp_path)
    assert words in str(error.value) and str(given[name]) in str(error.value)


def test_unreadable_files_and_absent_tasks_are_named(files, data, tiny_base, tmp_path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(files["gsm8k"].read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut\.parquet"):
        prepare({"gsm8k": cut}, tmp_path)
    shutil.copy(data / "math_500.parquet", tmp_path)
    with pytest.raises(UserError, match="aime24"):
        evaluate([(0, tiny_base)], tmp_path, RECIPE, SETTINGS, tmp_path)


def test_a_broken_checkpoint_is_named(engine, tiny_base, other, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(other, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="broken"):
        engine.load(broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match="rms_norm_eps"):
        engine.load(broken)
    engine.load(tiny_base)


def test_mmlu_pro_without_validation_split_says_so(files, tmp_path):
    def many(rows):
        rows[:] = [
            row | {"category": f"c{i % 2}", "question": f"{row['question']} {i}"} for i in range(8) for row in rows
        ]
        rows[0]["answer_index"] = (rows[0]["answer_index"] + 1) % 10  # as in row 3859 of the public file

    given = changed(files, "mmlu_pro", tmp_path, many)
    out = tmp_path / "out"
    out.mkdir()
    prepare(given, out)
    shots = pq.read_table(out / "mmlu_pro_dev.parquet").num_rows
    left = pq.read_table(out / "mmlu_pro.parquet").num_rows
    assert shots == 10 and shots + left == pq.read_table(given["mmlu_pro"]).num_rows
    assert set(json.loads((out / "notes.json").read_text())) == {"mmlu_pro_dev"}


# ---------------------------------------------------------------- the real files


def test_real_files_end_to_end(shared_data, tiny_base, tmp_path):
    """A few questions of every real file; prompts longer than the tiny model's positions stay whole and are counted."""
    prepare(
        {
            "math_500": shared_data / "math_500" / "test_000-249.parquet",
            "aime24": shared_data / "aime24" / "test.parquet",
            "gsm8k": shared_data / "gsm8k" / "test_0000-0659.parquet",
            "gsm8k_train": shared_data / "gsm8k" / "train.parquet",
            "mmlu": shared_data / "mmlu" / "validation.parquet",
            "mmlu_dev": shared_data / "mmlu" / "dev.parquet",
            "mmlu_pro": shared_data / "mmlu_pro" / "test.parquet",
            "ifeval": shared_data / "ifeval" / "input_data.parquet",
        },
        tmp_path,
    )
    tasks = {"math_500": {}, "aime24": {}, "gsm8k": {"shots": 5}, "mmlu": {"shots": 5}, "mmlu_pro": {"shots": 5}}
    tasks = {name: task | {"limit": 2, "max_new_tokens": 8} for name, task in (tasks | {"ifeval": {}}).items()}
    evaluate([(3, tiny_base)], tmp_path, EvaluationRecipe.model_validate({"tasks": tasks}), SETTINGS, tmp_path)
    rows = pq.read_table(tmp_path / "samples.parquet").to_pandas()
    assert set(rows.task) == set(tasks) and rows.score.between(0, 1).all()
    questions = pq.read_table(tmp_path / "mmlu_pro.parquet")["question"].to_pylist()
    for row in rows[rows.task == "mmlu_pro"].itertuples():
        assert questions[row.question] in row.prompt and row.prompt.count("Answer:") == 6
    counted = json.loads((tmp_path / "notes.json").read_text())["3"]["prompts_beyond_the_models_positions"]
    assert counted["mmlu_pro"] == 2
    golds = rows[rows.task == "aime24"].gold.tolist()
    assert golds == [r"$\boxed{204}$", r"$\boxed{113}$"]
