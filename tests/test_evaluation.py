"""Evaluation by the harnesses themselves, checked against brute force."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from scalpel.chat import load_tokenizer, render
from scalpel.config import EvaluationRecipe, EvaluationSettings
from scalpel.data.answers import Grader
from scalpel.errors import UserError
from scalpel.evaluation import evaluate, prepare

RECIPE = EvaluationRecipe.model_validate(
    {
        "tasks": {
            "math_500": {"samples": 3, "max_new_tokens": 20},
            "aime24": {"max_new_tokens": 8, "limit": 2},
            "gsm8k": {"shots": 2, "max_new_tokens": 16},
            "mmlu": {"shots": 2},
            "mmlu_pro": {"shots": 1},
            "ifeval": {"max_new_tokens": 16},
        }
    }
)
SETTINGS = EvaluationSettings(batch_size=16)


@pytest.fixture(scope="module")
def questions(tiny_world, tmp_path_factory):
    out = tmp_path_factory.mktemp("questions")
    prepare({path.stem: path for path in (tiny_world / "world" / "evaluation").glob("*.parquet")}, out)
    return out


@pytest.fixture(scope="module")
def other(tiny_base, tmp_path_factory):
    """A second checkpoint of the same architecture, with other weights."""
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("other")
    for path in tiny_base.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(5)
    weights = {k: v + 0.3 * torch.randn_like(v) for k, v in load_file(tiny_base / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def evaluated(tiny_base, other, questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    evaluate([(0, tiny_base), (7, other)], questions, RECIPE, SETTINGS, out)
    return out


def read(out, name):
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def test_every_question_and_sample_is_kept(evaluated):
    samples = read(evaluated, "samples")
    counts = {}
    for row in samples:
        counts.setdefault((row["step"], row["task"], row["metric"]), []).append((row["prompt"], row["sample"]))
    for step in (0, 7):
        assert len(counts[step, "math_500", "avg@n"]) == 6 * 3
        assert len(counts[step, "aime24", "avg@n"]) == 1
        assert len(counts[step, "gsm8k", "extractive_match"]) == 4
        assert len(counts[step, "mmlu", "acc"]) == 8
        assert len(counts[step, "mmlu_pro", "acc"]) == 4
        assert len(counts[step, "ifeval", "prompt_level_strict_acc"]) == 5
    for row in read(evaluated, "scores"):
        assert 0 <= row["value"] <= 1 and math.isfinite(row["stderr"])
    assert "ifeval_sentences" in json.loads((evaluated / "notes.json").read_text())


def test_the_process_can_still_train(evaluated):
    """LightEval's transformers engine turns gradients off for the process that imports it."""
    assert torch.is_grad_enabled()


def test_each_checkpoint_is_answered_by_its_own_weights(evaluated):
    texts = {step: [r["completion"] for r in read(evaluated, "samples") if r["step"] == step] for step in (0, 7)}
    assert texts[0] != texts[7]


def test_scores_do_not_depend_on_the_shard(evaluated, other, questions, tmp_path):
    evaluate([(7, other)], questions, RECIPE, SETTINGS, tmp_path)
    assert read(tmp_path, "samples") == [row for row in read(evaluated, "samples") if row["step"] == 7]


def test_prompts_are_rendered_with_the_one_template(evaluated, tiny_base, questions):
    tokenizer = load_tokenizer(tiny_base)
    asked = {r["prompt"] for r in read(evaluated, "samples") if r["task"] == "math_500"}
    assert asked == {render(tokenizer, row["problem"]) for row in read(questions, "math_500")}
    shots = next(r["prompt"] for r in read(evaluated, "samples") if r["task"] == "gsm8k")
    assert shots.count("<|user|>") == 3 and shots.count("<|system|>") == 1


@pytest.mark.parametrize("task", ["mmlu", "mmlu_pro"])
def test_multiple_choice_against_brute_force(evaluated, tiny_base, task):
    """Float64 log-likelihood of prompt + letter, one sequence at a time, picks what the harness picked."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).double()
    for row in [r for r in read(evaluated, "samples") if r["task"] == task and r["step"] == 0]:
        space = " " if row["completion"].startswith(" ") else ""
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        scores = []
        for letter in "ABCDEFGHIJ"[: len(row["choice_logprobs"])]:
            whole = tokenizer(row["prompt"] + space + letter, add_special_tokens=False)["input_ids"]
            start = len(prompt) - 1 if whole[: len(prompt)] == prompt else len(prompt) - 2
            with torch.no_grad():
                logits = torch.log_softmax(model(torch.tensor([whole])).logits[0, :-1], -1)
            scores.append(logits[range(start, len(whole) - 1), whole[start + 1 :]].sum().item())
        offset = scores[0] - row["choice_logprobs"][0]  # the harness may count the prompt's last newline too
        assert [s - offset for s in scores] == pytest.approx(row["choice_logprobs"], abs=1e-3)
        best = max(range(len(scores)), key=scores.__getitem__)
        assert "ABCDEFGHIJ"[best] == row["completion"].strip()
        assert row["score"] == float(row["completion"].strip() == row["gold"].strip())


def test_maths_scores_against_math_verify(evaluated):
    rows = [r for r in read(evaluated, "samples") if r["task"] == "math_500"]
    with Grader() as grader:
        verdicts = grader.grade_many([(r["gold"], r["completion"]) for r in rows])
    assert [float(bool(v)) for v in verdicts] == [r["score"] for r in rows]


def test_standard_error_is_that_of_question_means(evaluated):
    rows = [r for r in read(evaluated, "samples") if r["task"] == "math_500" and r["step"] == 0]
    means = torch.tensor([r["score"] for r in rows], dtype=torch.float64).view(-1, 3).mean(1)
    (score,) = [r for r in read(evaluated, "scores") if r["task"] == "math_500" and r["step"] == 0]
    assert score["value"] == pytest.approx(means.mean().item())
    assert score["stderr"] == pytest.approx((means.std() / len(means) ** 0.5).item())


GOOD = {"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("mmlu", GOOD | {"answer": 4}, "row 0: MMLU rows have 4 choices"),
        ("mmlu", {k: v for k, v in GOOD.items() if k != "choices"}, "lacks column 'choices'"),
        ("gsm8k", {"question": "q", "answer": "five"}, "row 0: the answer does not end in"),
        ("math_500", {"problem": "p", "answer": ""}, "column 'answer' is empty"),
        (
            "mmlu_pro",
            {"question": "q", "options": ["a", "b"], "answer": "C", "answer_index": 2, "category": "c"},
            "'C'",
        ),
        ("ifeval", {"prompt": "p", "instruction_id_list": ["a"], "kwargs__json": "[]"}, "1 instructions but 0 sets"),
    ],
)
def test_bad_questions_are_named(name, row, sentence, tmp_path):
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=sentence) as caught:
        prepare({name: tmp_path / f"{name}.parquet"}, tmp_path)
    assert f"{name}.parquet" in str(caught.value)


def test_truncated_checkpoint_is_named(tiny_base, questions, tmp_path):
    for path in tiny_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 2000 if path.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match="does not load"):
        evaluate([(0, tmp_path)], questions, RECIPE, SETTINGS, tmp_path)


@pytest.mark.slow
def test_real_questions(shared_data, tiny_base, tmp_path):
    """Real MATH-500, GSM8K, MMLU, MMLU-Pro and IFEval rows run through, whole; scores near zero are expected."""
    files = {
        "math_500": "math_500/test_000-249.parquet",
        "gsm8k": "gsm8k/test_0000-0659.parquet",
        "gsm8k_train": "gsm8k/train.parquet",
        "mmlu": "mmlu/validation.parquet",
        "mmlu_dev": "mmlu/dev.parquet",
        "mmlu_pro": "mmlu_pro/test.parquet",
        "ifeval": "ifeval/input_data.parquet",
        "aime24": "aime24/test.parquet",
    }
    prepare({name: shared_data / path for name, path in files.items()}, tmp_path)
    assert "first 5 questions of each category" in json.loads((tmp_path / "notes.json").read_text())["mmlu_pro_dev"]
    tasks = {
        name: {"limit": 3, "max_new_tokens": 8}
        for name in ("math_500", "aime24", "gsm8k", "mmlu", "mmlu_pro", "ifeval")
    }
    evaluate([(0, tiny_base)], tmp_path, EvaluationRecipe.model_validate({"tasks": tasks}), SETTINGS, tmp_path)
    rows = read(tmp_path, "samples")
    assert {row["task"] for row in rows} == set(tasks)
    problem = read(tmp_path, "math_500")[0]["problem"]
    assert any(problem in row["prompt"] for row in rows)
