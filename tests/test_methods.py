"""Training: exact resumption, the same questions at the same steps, freezing, and losses against references."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scalpel.artifact.files import CIRCUMSTANCES
from scalpel.artifact.identity import sha256_file
from scalpel.chat import load_tokenizer, render, token_ids
from scalpel.config.training import Trainable, TrainSettings
from scalpel.errors import Interrupted, UserError
from scalpel.grading.text import tag_count
from scalpel.methods import METHODS, loop
from scalpel.methods.freezing import check_frozen
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.likelihood import BLANK, micro_batches
from scalpel.methods.loop import MethodTrainer, Saving, TrainingRun
from scalpel.methods.rollouts import RolloutTrainer
from scalpel.methods.rollouts import schedule as rollout_schedule
from scalpel.methods.schedule import by_count, by_tokens, checkpoint_steps, read_questions
from scalpel.methods.sft import SFTRecipe
from scalpel.methods.sft_trainer import schedule
from scalpel.methods.state import COMPLETE, usable_state
from tests.mixed import Mixed, MixedRecipe

ROOT = Path(__file__).resolve().parent.parent
METHODS |= {"mixed": Mixed}
SETTINGS = TrainSettings(sequences_per_device=4)
SEED = 3
SFT = SFTRecipe(learning_rate=1e-3, sequences_per_step=4, epochs=2, checkpoints=3, max_tokens=400)
GRPO = GRPORecipe(
    learning_rate=1e-3,
    questions_per_step=4,
    generations=4,
    steps=6,
    checkpoints=3,
    max_completion_tokens=16,
    temperature=1.0,
)
# Two optimizer steps of each batch of rollouts, which is gone through twice: checkpoints fall in the midst of one.
MIXED = MixedRecipe(**GRPO.model_dump(include=set(MixedRecipe.model_fields) - {"method", "held"}))
REUSING = GRPO.model_copy(update={"questions_per_step": 2, "updates": 2, "iterations": 2, "epsilon_high": 0.28})


def training(recipe, model, data, out, settings=SETTINGS, start=None, seed=SEED) -> TrainingRun:
    return TrainingRun(recipe, model, start or model, *data, seed, recipe.trainable, out, settings)


def train(recipe, model, data, out, settings=SETTINGS, start=None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    import_module(METHODS[recipe.method].trainer).train(training(recipe, model, data, out, settings, start))


CHILD = """
import sys
from pathlib import Path
from tests.test_methods import kill_at, train
from scalpel.grading.grader import Grader
from scalpel.methods import METHODS, loop
# The tiny model never answers a question: a third of what it writes is called right, so that there is a gradient.
Grader.grade_many = lambda self, pairs: [len(text) % 3 == 0 for _, text in pairs]
method, recipe, model, start, kept, order, out, *killed = sys.argv[1:]
for moment in killed:
    kill_at(moment)
recipe = METHODS[method].Recipe.model_validate_json(recipe)
train(recipe, Path(model), (Path(kept), Path(order)), Path(out), start=Path(start))
"""


def files(out: Path) -> dict[str, str]:
    """sha256 of everything a run leaves, its state aside."""
    return {
        str(p.relative_to(out)): sha256_file(p)
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] != "state"
    }


FORKED = multiprocessing.get_context("forkserver")  # from a process that has imported what takes seconds
FORKED.set_forkserver_preload([__name__, *sorted({method.trainer for method in METHODS.values()})])


class Child(FORKED.Process):  # type: ignore[name-defined]
    """A training run in a process of its own, with the words of subprocess.Popen."""

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode


def train_alone(*arguments: str) -> None:
    """What a child does, in silence."""
    sys.argv[1:] = arguments
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    exec(CHILD, {})


def start(recipe, model, data, out, of=None, *killed: str) -> Child:
    arguments = [recipe.method, recipe.model_dump_json(), str(model), str(of or model), *map(str, data), str(out)]
    child = Child(target=train_alone, args=[*arguments, *killed])
    child.start()
    return child


MOMENTS = ("saved", "saving", "stepped")


def kill_at(moment: str) -> None:
    """kill -9 of this process: its first state is complete, is being written, or has been followed by a step."""
    on_save, on_step_end = Saving.on_save, Saving.on_step_end
    saved = []

    def save(self, *given, **more):
        if moment == "saving":
            os.kill(os.getpid(), signal.SIGKILL)
        on_save(self, *given, **more)
        if moment == "saved":
            os.kill(os.getpid(), signal.SIGKILL)
        saved.append(self.at)

    def step(self, *given, **more):
        on_step_end(self, *given, **more)
        if saved:
            os.kill(os.getpid(), signal.SIGKILL)

    Saving.on_save, Saving.on_step_end = save, step  # type: ignore[method-assign]


RECIPES = {"sft": SFT, "grpo": GRPO, "reusing": REUSING, "mixed": MIXED}


@pytest.fixture(scope="module")
def finished(tiny_base, tiny_data, tmp_path_factory) -> dict[str, Path]:
    """One uninterrupted run of each kind, in processes of their own as the workflow makes them."""
    outs = {name: tmp_path_factory.mktemp(name) for name in RECIPES}
    for name, recipe in RECIPES.items():
        assert start(recipe, tiny_base, tiny_data, outs[name]).wait() == 0
    return outs


def interrupted(recipe, model, data, out, of=None) -> None:
    """kill -9 after the first state, while the second is written, and a step after it; then the second is torn."""
    out.mkdir()
    for moment in MOMENTS:
        assert start(recipe, model, data, out, of, moment).wait() == -signal.SIGKILL
    states = [path.parent for path in out.glob(f"state/checkpoint-*/{COMPLETE}")]
    assert len(states) == 2
    newest = max(states, key=lambda p: int(p.name.split("-")[1]))
    with open(newest / "optimizer.pt", "r+b") as file:
        file.truncate(100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.campaign] * (name not in ("sft", "grpo"))) for name in RECIPES]
)
def test_killed_at_any_moment_ends_bitwise_equal(name, finished, tiny_base, tiny_data, tmp_path):
    """Killed right after a state, between states, and while a state is written; the runs span epochs."""
    recipe, out = RECIPES[name], tmp_path / "run"
    interrupted(recipe, tiny_base, tiny_data, out)
    assert start(recipe, tiny_base, tiny_data, out).wait() == 0
    assert files(out) == files(finished[name])
    clock = json.loads((out / "state" / CIRCUMSTANCES).read_text())["step_seconds"]
    steps = pq.read_table(out / "log.parquet", columns=["step"]).num_rows
    assert len(clock) == steps and min(clock) > 0, "each step's time once, however often the run was killed"
    assert start(recipe, tiny_base, tiny_data, out).wait() == 0, "a finished run that is started again"
    assert files(out) == files(finished[name])


def test_stops_where_the_longest_step_and_a_save_would_no_longer_fit(tiny_base, tiny_data, tmp_path, monkeypatch):
    """Batches of four steps, the first of each with its rollouts: 100 s, 110 s and then 200 s; 10 s the others, 20 s a
    save. Step 9 would end at 490 s, after the job's 445 s, and a constant of 1 s would begin it."""

    class Clock:
        now = 1e6

        def time(self):
            return self.now

        monotonic = time

    clock, deadline, after, more = Clock(), 1e6 + 445, MethodTrainer.after_step, RolloutTrainer.save_more

    def step(self, number):
        after(self, number)
        clock.now += {1: 100, 5: 110, 9: 200}.get(number, 10)

    def save(self, directory):
        more(self, directory)
        clock.now += 20

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop.slurm, "deadline", lambda: deadline)
    monkeypatch.setattr(MethodTrainer, "after_step", step)
    monkeypatch.setattr(RolloutTrainer, "save_more", save)
    given = REUSING.model_copy(update={"steps": 12, "checkpoints": 2})
    with pytest.raises(Interrupted, match="saved after step 8 of 12: the job's time limit is near") as stopped:
        train(given, tiny_base, tiny_data, tmp_path / "run", SETTINGS.model_copy(update={"stop_before_seconds": 1}))
    assert stopped.value.requeue and clock.now < deadline


@pytest.mark.slow
def test_a_second_stage_resumes_bitwise(finished, tiny_base, tiny_data, tmp_path):
    """SFT, then GRPO from its last checkpoint."""
    sft = sorted(finished["sft"].glob("checkpoints/*"))[-1]
    assert start(GRPO, tiny_base, tiny_data, tmp_path / "whole", sft).wait() == 0
    interrupted(GRPO, tiny_base, tiny_data, tmp_path / "killed", sft)
    assert start(GRPO, tiny_base, tiny_data, tmp_path / "killed", sft).wait() == 0
    assert files(tmp_path / "whole") == files(tmp_path / "killed")
    assert files(tmp_path / "whole") != files(finished["grpo"])


def test_mixed_rollouts_and_a_buffer(finished, tiny_data):
    """The expert's trace stands in every group, and the buffer's updates took place in what resumed above."""
    rollouts = pq.read_table(finished["mixed"] / "rollouts.parquet").to_pylist()
    assert [r["origin"] for r in rollouts[:4]] == ["own", "own", "own", "expert"]
    assert all(r["prefix_length"] == (r["completion_length"] if r["origin"] == "expert" else 0) for r in rollouts)
    log = pq.read_table(finished["mixed"] / "log.parquet").to_pylist()
    written = sum(r["completion_length"] for r in rollouts if r["step"] == 1 and r["origin"] == "own")
    assert log[0]["written"] == written and log[0]["questions"] == 4
    buffer, updates = json.loads(next(finished["mixed"].glob("state/checkpoint-6/buffer.json")).read_text())
    assert updates > 0 and len(buffer) < 2


def test_several_steps_of_one_batch_of_rollouts(finished):
    """updates 2, iterations 2: four steps of each batch; the second pass is over the same completions."""
    questions = pq.read_table(finished["reusing"] / "questions.parquet").to_pylist()
    assert [q["step"] for q in questions] == [1, 1, 2, 2, 5, 5, 6, 6]
    log = pq.read_table(finished["reusing"] / "log.parquet").to_pylist()
    assert [row["questions"] for row in log] == [2, 2, 0, 0, 2, 2]
    assert [row["tokens"] for row in log][:2] == [row["tokens"] for row in log][2:4]
    assert [row["written"] for row in log][2:4] == [0, 0] and log[0]["reward"] == log[2]["reward"]
    assert log[0]["clipped_fraction"] == 0


def test_checkpoint_steps():
    assert checkpoint_steps(571, 20) == [*range(29, 552, 29), 571]  # the paper's GRPO run
    assert checkpoint_steps(462, 20) == [*range(24, 457, 24), 462]  # and its SFT run
    for steps in (20, 21, 84, 100, 110, 599):
        found = checkpoint_steps(steps, 20)
        assert len(set(found)) == 20 and found[-1] == steps and found == sorted(found)
    with pytest.raises(UserError, match="do not fit"):
        checkpoint_steps(19, 20)


def test_layout(finished):
    for name, out in finished.items():
        listing = json.loads((out / "checkpoints.json").read_text())
        assert [item["index"] for item in listing] == [1, 2, 3]
        for item in listing:
            load_tokenizer(out / item["path"])
            assert (out / item["path"] / "model.safetensors").is_file()
        log = pq.read_table(out / "log.parquet")
        assert log.column("step").to_pylist() == list(range(1, listing[-1]["step"] + 1)), name
        assert not {"loss", "grad_norm", "entropy"} - set(log.column_names)


def test_same_questions_at_the_same_steps(finished, tiny_base, tiny_data, tmp_path):
    matched = SFT.model_copy(update={"matching": "questions", "questions_per_step": 4, "epochs": None, "steps": 6})
    train(matched, tiny_base, tiny_data, tmp_path)

    def asked(out: Path) -> list[tuple[int, int]]:
        rows = pq.read_table(out / "questions.parquet").to_pylist()
        return [(row["step"], row["row"]) for row in rows]

    assert asked(tmp_path) == asked(finished["grpo"])
    ordered = pq.read_table(tiny_data[1]).column("row").to_pylist()
    assert [row for _, row in asked(tmp_path)][:14] == ordered[:14]  # crosses into the second epoch of 14 rows


def test_every_row_of_every_epoch_is_trained_on(finished, tiny_data):
    rows = pq.read_table(finished["sft"] / "questions.parquet").column("row").to_pylist()
    assert sorted(rows) == sorted(pq.read_table(tiny_data[1]).column("row").to_pylist()[:28])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("matching", ["count", "tokens"])
def test_no_step_holds_a_row_twice(matching, seed):
    """Steps go across the ends of epochs; each row is asked as often as before, and as early as can be."""
    rng = np.random.default_rng(seed)
    count, size, epochs = int(rng.integers(8, 40)), int(rng.integers(1, 9)), int(rng.integers(1, 5))
    ordered = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    if matching == "count":
        steps = by_count(ordered, size, None)
        assert [len(step) for step in steps[:-1]] == [size] * (len(steps) - 1)
        assert by_count(ordered, size, len(ordered) // size) == steps[: len(ordered) // size]
    else:
        lengths = rng.integers(5, 50, count)
        steps = by_tokens(ordered, lengths[ordered].tolist(), 5 * size, None)
    assert all(len(set(step)) == len(step) for step in steps[:-1])
    asked = [row for step in steps for row in step]
    assert sorted(asked) == sorted(ordered.tolist()) and asked[:count] == ordered[:count].tolist()


def test_a_step_larger_than_an_epoch_begins_over():
    assert by_count(np.array([3, 1, 2, 2, 3, 1]), 4, None) == [[3, 1, 2, 2], [3, 1]]
    assert by_count(np.array([1, 2, 2, 1, 1, 2]), 2, None) == [[1, 2], [2, 1], [1, 2]]
    assert by_count(np.array([3, 1, 2, 2, 3, 1]), 2, None) == [[3, 1], [2, 3], [2, 1]]


def test_matching_by_tokens_fills_each_step(tiny_data):
    questions = read_questions(*tiny_data)
    rows = questions.rows
    recipe = SFT.model_copy(update={"matching": "tokens", "tokens_per_step": 500, "epochs": None, "steps": 3})
    for step in schedule(recipe, questions):
        tokens = [rows[row]["tokens"] for row in step]
        assert sum(tokens) >= 500 > sum(tokens[:-1])


def test_matching_by_tokens_over_epochs_drops_no_row(tiny_base, tiny_data, tmp_path):
    """The last step has one row, fewer than there are micro-batches: it is filled up, its mean is its own."""
    questions = read_questions(*tiny_data)
    rows, ordered = questions.rows, questions.ordered
    tokens = [rows[row]["tokens"] for row in ordered.tolist()[:14]]
    recipe = SFT.model_copy(update={"matching": "tokens", "tokens_per_step": sum(tokens[:-1]), "epochs": 1})
    recipe = recipe.model_copy(update={"checkpoints": 2})
    assert [len(step) for step in schedule(recipe, questions)] == [13, 1]
    train(recipe, tiny_base, tiny_data, tmp_path)
    last = pq.read_table(tmp_path / "log.parquet").to_pylist()[-1]
    assert last["tokens"] == tokens[-1] and 0 < last["entropy"] < 10
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-000001").double()
    row = rows[ordered[13]]
    ids = torch.tensor([token_ids(load_tokenizer(tiny_base), row["problem"], row["trace"])])
    with torch.no_grad():
        assert last["loss"] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


def test_what_is_logged_of_a_step_is_a_mean_over_its_tokens(tiny_base, tiny_data, tmp_path):
    """Whatever the micro-batches: rows differ in length, so a mean of their means would be another number."""
    logs = []
    for size in (6, 1):
        settings = SETTINGS.model_copy(update={"sequences_per_device": size})
        train(SFT, tiny_base, tiny_data, tmp_path / str(size), settings)
        logs.append(pq.read_table(tmp_path / str(size) / "log.parquet").to_pandas())
    for column in ("entropy", "mean_token_accuracy", "loss"):
        np.testing.assert_allclose(logs[0][column], logs[1][column], rtol=2e-4, err_msg=column)


def test_loss_on_the_completion_alone(tiny_base, tiny_data, tmp_path):
    recipe = SFT.model_copy(update={"loss_on": "completion"})
    train(recipe, tiny_base, tiny_data, tmp_path)
    questions = read_questions(*tiny_data)
    rows, ordered = questions.rows, questions.ordered
    tokenizer = load_tokenizer(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).double()
    total, count = 0.0, 0
    for row in ordered[:4].tolist():
        prompt = token_ids(tokenizer, rows[row]["problem"])
        ids = torch.tensor([token_ids(tokenizer, rows[row]["problem"], rows[row]["trace"])])
        assert ids[0, : len(prompt)].tolist() == prompt
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
        count += ids.shape[1] - len(prompt)
    first = pq.read_table(tmp_path / "log.parquet").to_pylist()[0]
    assert first["loss"] == pytest.approx(total / count, rel=1e-5)


def test_gradient_checkpointing_changes_nothing(tiny_base, tiny_data, tmp_path):
    """With the embeddings frozen, too: re-entrant checkpointing would then lose the gradients."""
    recipe = SFT.model_copy(update={"trainable": Trainable(only=("q_proj", "k_proj"))})
    logs = []
    for on in (False, True):
        out = tmp_path / str(on)
        train(recipe, tiny_base, tiny_data, out, SETTINGS.model_copy(update={"gradient_checkpointing": on}))
        logs.append(pq.read_table(out / "log.parquet").to_pylist())
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-5)
    assert [row["grad_norm"] for row in logs[0]] == pytest.approx([row["grad_norm"] for row in logs[1]], rel=1e-4)


def test_damaged_journal_or_checkpoint_makes_the_state_unusable(finished, tmp_path, capsys):
    for name in ("state/questions.jsonl", "checkpoints/step-000003/model.safetensors"):
        out = tmp_path / name.replace("/", "-")
        shutil.copytree(finished["sft"], out)
        assert usable_state(out / "state").name == "checkpoint-7"
        with open(out / name, "a") as file:
            file.write("{torn")  # a journal may go further than its state
        if name.endswith("jsonl"):
            assert usable_state(out / "state").name == "checkpoint-7"
        (out / name).write_bytes((out / name).read_bytes()[:100])
        assert usable_state(out / "state") is None
        assert "incomplete or damaged" in capsys.readouterr().err


def test_bnpo_over_micro_batches_is_refused(tiny_base, tiny_data, tmp_path):
    with pytest.raises(UserError, match="sequences_per_device to 16 with one rank, or use dapo"):
        train(GRPO.model_copy(update={"loss_type": "bnpo"}), tiny_base, tiny_data, tmp_path)


def test_loss_that_is_not_a_number_stops_the_run(tiny_base, tiny_data, tmp_path):
    broken = tmp_path / "base"
    shutil.copytree(tiny_base, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="loss of step 1 is nan"):
        train(SFT, broken, tiny_data, tmp_path / "run")


def test_short_order_is_refused(tiny_data):
    questions = read_questions(*tiny_data)
    with pytest.raises(UserError, match=r"raise the scale's `epochs`"):
        rollout_schedule(GRPO.model_copy(update={"steps": 50}), questions)
    with pytest.raises(UserError, match=r"raise the scale's `epochs`"):
        schedule(SFT.model_copy(update={"epochs": 9}), questions)


def test_micro_batches_cover_each_step_once():
    batches, accumulation = micro_batches([[7] * 5, [8] * 5, [9] * 2], 2)
    assert accumulation == 3 and len(batches) == 9 and max(map(len, batches)) == 2
    assert batches[-1] == [BLANK]  # a short step is filled up
    assert [p for batch in batches for p in batch if p != BLANK] == list(range(12))


@pytest.mark.parametrize("trainable", [Trainable(only=("q_proj", "k_proj")), Trainable(freeze_mlp_layers=(1,))])
def test_frozen_parameters_do_not_change(trainable, tiny_base, tiny_data, tmp_path):
    train(SFT.model_copy(update={"trainable": trainable}), tiny_base, tiny_data, tmp_path)
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(sorted(tmp_path.glob("checkpoints/*"))[-1] / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if trainable.only:
        assert changed and all(name.split(".")[-2] in ("q_proj", "k_proj") for name in changed)
    else:
        assert not any(".layers.1.mlp." in name for name in changed)
        assert any(".layers.0.mlp." in name for name in changed)


def test_frozen_check_can_fail(tiny_base, finished):
    last = sorted(finished["sft"].glob("checkpoints/*"))[-1]
    with pytest.raises(RuntimeError, match="was frozen and changed"):
        check_frozen(tiny_base, last, Trainable(only=("q_proj",)), had_gradient=True)
    with pytest.raises(RuntimeError, match="did not train"):
        check_frozen(tiny_base, tiny_base, Trainable(), had_gradient=True)
    assert not check_frozen(tiny_base, tiny_base, Trainable(), had_gradient=False)["trained"]


def test_absent_layer_is_refused(tiny_base, tiny_data, tmp_path):
    recipe = SFT.model_copy(update={"trainable": Trainable(freeze_mlp_layers=(7,))})
    with pytest.raises(UserError, match="the model has layers 0 to 1"):
        train(recipe, tiny_base, tiny_data, tmp_path)


def test_first_sft_step_against_plain_pytorch(finished, tiny_base, tiny_data):
    """Loss and gradient norm of the step equal the token mean over the whole batch, in float64."""
    questions = read_questions(*tiny_data)
    rows, ordered = questions.rows, questions.ordered
    tokenizer = load_tokenizer(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in ordered[:4].tolist():
        ids = torch.tensor([token_ids(tokenizer, rows[row]["problem"], rows[row]["trace"])])
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        count += ids.shape[1] - 1
    (total / count).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    first = pq.read_table(finished["sft"] / "log.parquet").to_pylist()[0]
    assert first["loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_accumulation_changes_nothing(finished, tiny_base, tiny_data, tmp_path):
    train(SFT, tiny_base, tiny_data, tmp_path, TrainSettings(sequences_per_device=2))
    for mine, theirs in zip(
        pq.read_table(tmp_path / "log.parquet").to_pylist(),
        pq.read_table(finished["sft"] / "log.parquet").to_pylist(),
        strict=True,
    ):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_first_grpo_gradient_against_brute_force(finished, tiny_base):
    """dr_grpo: -sum over tokens of advantage x log-probability ratio (1), over completions x max length; its
    gradient norm from the recorded rollouts alone, in float64."""
    log = pq.read_table(finished["grpo"] / "log.parquet").to_pylist()
    first = next(row for row in log if row["grad_norm"])  # until then the model is the base
    rollouts = pq.read_table(finished["grpo"] / "rollouts.parquet").to_pylist()
    rollouts = [rollout for rollout in rollouts if rollout["step"] == first["step"]]
    assert len(rollouts) == 16
    tokenizer = load_tokenizer(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).double()
    rewards = torch.tensor([r["accuracy_reward"] + 0.2 * r["format_reward"] for r in rollouts], dtype=torch.float64)
    advantages = (rewards.view(-1, 4) - rewards.view(-1, 4).mean(1, keepdim=True)).flatten()
    assert first["reward"] == pytest.approx(rewards.mean().item(), abs=1e-6)
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        prompt = token_ids(tokenizer, rollout["prompt"])
        completion = rollout["completion_ids"]
        if completion[-1] != tokenizer.eos_token_id:
            continue  # truncated completions are masked
        ids = torch.tensor([prompt + completion])
        logits = torch.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / GRPO.temperature, -1)
        loss = loss - (logits.gather(1, torch.tensor(completion)[:, None]).sum() * advantage)
    loss = loss / (len(rollouts) * GRPO.max_completion_tokens)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters())).item()
    assert norm > 0 and first["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_trainers_feed_the_ids_of_the_chat_template(tiny_base, tiny_data, monkeypatch, tmp_path):
    """What reaches the model under SFT and GRPO is token_ids, position by position."""
    from scalpel.inference.transformers_engine import TransformersEngine
    from scalpel.methods.likelihood import SFTTrainer

    questions = read_questions(*tiny_data)
    rows, ordered = questions.rows, questions.ordered
    tokenizer = load_tokenizer(tiny_base)
    seen: dict[str, list] = {"sft": [], "grpo": []}
    original_loss, original_complete = SFTTrainer.compute_loss, TransformersEngine.complete

    def compute_loss(self, model, inputs, *args, **kwargs):
        lengths = inputs["attention_mask"].sum(1).tolist()
        seen["sft"] += [ids[:n].tolist() for ids, n in zip(inputs["input_ids"], lengths, strict=True)]
        return original_loss(self, model, inputs, *args, **kwargs)

    def complete(self, requests, *args, **kwargs):
        seen["grpo"] += [list(request.prompt) for request in requests]
        return original_complete(self, requests, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(TransformersEngine, "complete", complete)
    train(SFT, tiny_base, tiny_data, tmp_path / "sft")
    train(GRPO, tiny_base, tiny_data, tmp_path / "grpo")
    wanted = [rows[row] for row in ordered.tolist()]
    assert seen["sft"] == [token_ids(tokenizer, r["problem"], r["trace"]) for r in wanted[:28]]
    assert seen["grpo"] == [token_ids(tokenizer, r["problem"]) for r in wanted[:24]]
    assert all(len(ids) == r["tokens"] for ids, r in zip(seen["sft"], wanted, strict=False))


def test_row_over_the_cap_is_refused_by_name(tiny_base, tiny_data, tmp_path):
    with pytest.raises(UserError, match=r"row \d+ \(u\d+\) has \d+ tokens, more than max_tokens 20"):
        train(SFT.model_copy(update={"max_tokens": 20}), tiny_base, tiny_data, tmp_path)


def test_full_disk_while_saving_is_one_sentence_and_keeps_the_state(tiny_base, tiny_data, tmp_path, monkeypatch):
    copy, calls = shutil.copyfile, []

    def full(source, target, *args, **kwargs):
        if str(target).endswith("model.safetensors"):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device", str(target))
        return copy(source, target, *args, **kwargs)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left on the disk"):
        train(SFT, tiny_base, tiny_data, tmp_path)
    assert [p.name for p in tmp_path.glob("checkpoints/*")] and usable_state(tmp_path / "state") is not None
    assert not (tmp_path / "checkpoints.json").exists()


def test_a_checkpoint_is_on_the_disk_before_the_state_that_names_it(tiny_base, tiny_data, tmp_path, monkeypatch):
    """Files and the directories that name them are synced, renamed ones after the renaming."""
    out, synced, unsynced = tmp_path / "run", [], []
    fsync, replace = os.fsync, os.replace

    def recorded(handle):
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    def checked(source, target):
        if Path(target).name == COMPLETE:
            named = [Path(target).parent, *Path(target).parent.rglob("*"), *(out / "checkpoints").rglob("step-*/*")]
            named += [path for path in (out / "checkpoints",) if path.is_dir()]
            unsynced.extend(str(path) for path in named if path.stat().st_ino not in synced and path != Path(source))
        replace(source, target)
        if Path(target).name.startswith("step-"):
            parent = Path(target).parent.stat().st_ino
            synced[:] = [inode for inode in synced if inode != parent]

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", checked)
    train(SFT.model_copy(update={"epochs": 1, "checkpoints": 2}), tiny_base, tiny_data, out)
    assert len(list((out / "checkpoints").iterdir())) == 2 and unsynced == []


def test_prompt_is_the_rendered_conversation(tiny_base):
    tokenizer = load_tokenizer(tiny_base)
    assert render(tokenizer, "q").endswith("<|user|>q\n<|assistant|>\n")


def test_prompts_with_a_system_message_and_a_cap(tiny_base):
    """As the authors' GRPO: the message explicitly, and a longer prompt cut on the left."""
    from scalpel.chat import SYSTEM_PROMPT, load_tokenizer
    from scalpel.methods.rollouts import RolloutTrainer

    trainer = object.__new__(RolloutTrainer)
    trainer.processing_class = tokenizer = load_tokenizer(tiny_base)
    trainer.rows, trainer.prompts = {3: {"problem": "How many?", "trace": "Three."}}, {}
    trainer.recipe = GRPORecipe(learning_rate=1e-3, system_message=SYSTEM_PROMPT, max_prompt_tokens=9)
    turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "How many?"}]
    whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert trainer.prompt(3) == whole[-9:] and len(whole) > 9
    turns.append({"role": "assistant", "content": "Three."})
    both = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert trainer.trace(3) == both[len(whole) :] and trainer.trace(3)[-1] == tokenizer.eos_token_id


# ---------------------------------------------------------------- options of single runs


def test_the_count_of_tags_is_a_reward_of_its_own(tiny_base, tiny_data, tmp_path):
    """It is logged and counts in the total where it has a weight, and nowhere else."""
    small = {"steps": 2, "checkpoints": 1, "max_completion_tokens": 24}
    for weight in (0.0, 0.5):
        out = tmp_path / str(weight)
        train(GRPO.model_copy(update=small | {"tag_count_weight": weight}), tiny_base, tiny_data, out)
        log, written = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("log", "rollouts"))
        assert ("tag_count_reward" in log[0]) == bool(weight)
        for row in log:
            of_step = [r for r in written if r["step"] == row["step"]]
            tags = [tag_count(r["completion"]) for r in of_step]
            assert row.get("tag_count_reward", 0.0) == pytest.approx(np.mean(tags) if weight else 0.0)
            parts = [(r["accuracy_reward"] or 0) + 0.2 * r["format_reward"] for r in of_step]
            assert row["reward"] == pytest.approx(np.mean(parts) + weight * np.mean(tags), abs=1e-6)


def test_the_rest_of_an_epoch_may_be_dropped(tiny_data):
    """The authors' 462 steps: 3 x floor(69,132 / 448); kept, the rest makes 463."""
    questions = read_questions(*tiny_data)  # 14 rows, 3 epochs
    kept = SFT.model_copy(update={"epochs": 3})
    dropped = SFTRecipe(**kept.model_dump() | {"epoch_rest": "dropped"})
    steps = schedule(dropped, questions)
    assert [len(step) for step in steps] == [4] * 9 and len(schedule(kept, questions)) == 11
    for epoch in range(3):
        rows = questions.ordered[questions.epochs == epoch].tolist()
        assert [row for step in steps[3 * epoch : 3 * epoch + 3] for row in step] == rows[:12]
    paper = {"learning_rate": 5e-5, "sequences_per_step": 448, "epochs": 3}
    fed = METHODS["sft"].steps_fed
    assert fed(SFTRecipe(**paper), 69132, 3) == 463 and fed(SFTRecipe(**paper, epoch_rest="dropped"), 69132, 3) == 462
    with pytest.raises(ValueError, match="`epoch_rest: dropped` goes with `epochs`"):
        SFTRecipe(learning_rate=1e-3, steps=50, epoch_rest="dropped")
