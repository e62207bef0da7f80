"""python -m benchmarks.grpo_step BASE KEPT ORDER [STEPS]: seconds of a GRPO step against TRL's own, in one run.

BASE: a saved model (results/base/<name>-<digest>/model); KEPT and ORDER: kept.parquet and order.parquet of a data and
an order result. The peer is TRL's GRPOTrainer as its documentation uses it, with the same model, questions, sizes,
rewards and loss. Both train STEPS steps (12), the first two of which are not counted. One torch thread.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from scalpel.artifact.files import ROOT
from scalpel.chat import conversation, load_tokenizer
from scalpel.config.load import load
from scalpel.config.training import TrainSettings
from scalpel.grading.grader import Grader
from scalpel.methods import rewards, rollouts
from scalpel.methods.grpo_trainer import train
from scalpel.methods.loop import TrainingRun
from scalpel.methods.schedule import read_questions
from scalpel.weights import load_model

WARM_UP = 2


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **_):
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Mean of the steps after the warm-up."""
        return (self.times[-1] - self.times[WARM_UP - 1]) / (len(self.times) - WARM_UP)


def ours(recipe, base: Path, kept: Path, order: Path, clock: Clock) -> None:
    made = rollouts.Saving
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(recipe, base, base, kept, order, 42, recipe.trainable, Path(folder), TrainSettings())

        class Timed(made):
            def on_step_end(self, *args, **kwargs):
                super().on_step_end(*args, **kwargs)
                clock.on_step_end(*args, **kwargs)

        rollouts.Saving = Timed
        try:
            train(run)
        finally:
            rollouts.Saving = made


def theirs(recipe, base: Path, kept: Path, order: Path, clock: Clock) -> None:
    questions = read_questions(kept, order)
    asked = [questions.rows[row] for row in questions.ordered.tolist()[: recipe.questions_per_step * recipe.steps]]
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    with Grader() as grader, tempfile.TemporaryDirectory() as folder:

        def accuracy(completions, answer, **_):
            return rewards.accuracy(grader, answer, [c[0]["content"] for c in completions])

        def form(completions, **_):
            return rewards.well_formed(grader, [c[0]["content"] for c in completions])

        GRPOTrainer(
            model=load_model(base, "float32"),
            reward_funcs=[accuracy, form],
            args=GRPOConfig(
                output_dir=folder, max_steps=recipe.steps, learning_rate=recipe.learning_rate, use_cpu=True, bf16=False,
                per_device_train_batch_size=recipe.questions_per_step * recipe.generations,
                num_generations=recipe.generations, max_completion_length=recipe.max_completion_tokens,
                temperature=recipe.temperature, loss_type=recipe.loss_type, scale_rewards="none", beta=0.0,
                reward_weights=[1.0, recipe.format_weight], report_to="none", save_strategy="no", disable_tqdm=True,
                max_grad_norm=recipe.max_grad_norm, mask_truncated_completions=True, shuffle_dataset=False,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": conversation(row["problem"]), "answer": row["answer"]} for row in asked]
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()  # fmt: skip


def main() -> None:
    base, kept, order = map(Path, sys.argv[1:4])
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 12
    torch.set_num_threads(1)
    changes = {"runs": {"grpo": {"steps": steps, "checkpoints": 1}}}
    recipe = load(changes, ROOT / "workflow").studies["scalpel_vs_hammer"].runs["grpo"].recipe
    clocks = Clock(), Clock()
    theirs(recipe, base, kept, order, clocks[1])
    ours(recipe, base, kept, order, clocks[0])
    mine, peer = (clock.seconds for clock in clocks)
    size = f"{recipe.questions_per_step} x {recipe.generations} completions of at most {recipe.max_completion_tokens}"
    print(f"a GRPO step of {size} tokens: TRL {peer:.3f} s, scalpel {mine:.3f} s, ratio {peer / mine:.2f}")


if __name__ == "__main__":
    main()
