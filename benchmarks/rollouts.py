"""python -m benchmarks.rollouts [model directory]: a GRPO step's completions by our engine and by TRL's own generation.

The peer is trl.GRPOTrainer._generate_single_turn as TRL ships it (transformers' generate with left padding). Shape of
the laptop scale: 8 prompts x 8 samples, up to 64 new tokens, temperature 1, one thread. Both write in turns with the
same model; each is timed on completions of its own, so lengths are printed beside the times. Without a directory a toy
model is trained first, which takes a minute.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from scalpel.artifact.stage import quiet_libraries

QUESTIONS, SAMPLES, MOST, ROUNDS = 8, 8, 64, 15


def toy_model(directory: Path) -> Path:
    from scalpel.chat import template_text
    from scalpel.config.models import ToyModelRecipe, ToyWorldRecipe
    from scalpel.toy.model import train_base
    from scalpel.toy.world import write_world

    write_world(ToyWorldRecipe(), directory / "world")
    train_base(ToyModelRecipe(steps=400), directory / "world", directory, 1, template_text("scalpel_vs_hammer"))
    return directory / "model"


def trl_trainer(model, tokenizer, directory: str):
    """A stock GRPOTrainer around the model; only its generation is used."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer.padding_side = "left"
    arguments = GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        per_device_train_batch_size=QUESTIONS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=MOST,
        temperature=1.0,
        report_to="none",
    )
    rows = Dataset.from_list([{"prompt": "?"}] * QUESTIONS)
    return GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), arguments, rows, processing_class=tokenizer
    )


def main() -> None:
    from scalpel.chat import load_tokenizer, token_ids
    from scalpel.inference.requests import Request
    from scalpel.inference.transformers_engine import TransformersEngine
    from scalpel.toy.world import problem
    from scalpel.weights import load_model

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else toy_model(Path(directory))
        model, tokenizer = load_model(path, "float32"), load_tokenizer(path)
        trainer = trl_trainer(model, tokenizer, directory)
        engine = TransformersEngine(model, tokenizer, QUESTIONS * SAMPLES)
        seconds: dict[str, list[float]] = {"TRL": [], "ours": []}
        lengths: dict[str, list[int]] = {"TRL": [], "ours": []}
        rng = random.Random(0)
        for number in range(ROUNDS + 2):  # the first two are not counted
            prompts = [token_ids(tokenizer, problem(rng, 14).text) for _ in range(QUESTIONS)]
            started = time.process_time()
            theirs, _ = trainer._generate_single_turn([p for p in prompts for _ in range(SAMPLES)], None, {}, SAMPLES)
            between = time.process_time()
            requests = [Request(prompt, (number, row), SAMPLES, MOST) for row, prompt in enumerate(prompts)]
            ours = engine.complete(requests, temperature=1.0, top_p=1.0)
            ended = time.process_time()
            if number >= 2:
                seconds["TRL"].append(between - started)
                seconds["ours"].append(ended - between)
                lengths["TRL"] += [len(ids) for ids in theirs]
                lengths["ours"] += [len(one.ids) + (one.end is not None) for mine in ours for one in mine]
    for name in seconds:
        print(
            f"{name:>5}: median {statistics.median(seconds[name]):.3f} s, best {min(seconds[name]):.3f} s; "
            f"{statistics.mean(lengths[name]):.1f} tokens a completion, {max(lengths[name])} at most"
        )
    print(f"ratio of medians: {statistics.median(seconds['TRL']) / statistics.median(seconds['ours']):.2f}")


if __name__ == "__main__":
    quiet_libraries()
    main()
