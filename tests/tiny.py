"""The smallest real base model and data: seconds to make, and every stage accepts them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.chat import template_text, token_ids
from scalpel.config.data import OrderRecipe
from scalpel.config.models import ToyModelRecipe, ToyWorldRecipe
from scalpel.data.order import write_order

WORLD = ToyWorldRecipe(
    train_rows=60, max_operand=4, facts=24, math_500=6, gsm8k=4, mmlu=8, mmlu_pro=4, ifeval=5, pretraining_samples=600
)
MODEL = ToyModelRecipe(
    hidden_size=32, intermediate_size=48, layers=2, heads=2, vocab_size=420, steps=150, batch_size=8, sequence_length=64
)


def make_tiny_base(directory: Path, model: ToyModelRecipe = MODEL, template: str = "scalpel_vs_hammer") -> Path:
    """A two-layer Olmo2 with tokenizer and the named chat template under `directory`; returns the model directory."""
    from scalpel.toy.model import train_base
    from scalpel.toy.world import write_world

    directory.mkdir(parents=True, exist_ok=True)
    write_world(WORLD, directory / "world")
    train_base(model, directory / "world", directory / "base", threads=1, template=template_text(template))
    return directory / "base" / "model"


def make_tiny_sets(world: Path, out: Path) -> dict[str, Path]:
    """The toy world's question sets, checked and laid out below `out`, by name."""
    from scalpel.config.evaluation import FORMATS
    from scalpel.evaluation.questions import prepare

    sets = {}
    for name, form in FORMATS.items():
        files = {"questions": world / f"{name}.parquet", "examples": world / f"{name}_examples.parquet"}
        files = {role: path for role, path in files.items() if path.is_file()}
        if files:
            sets[name] = out / name
            sets[name].mkdir(parents=True)
            prepare({"format": form, "toy": name}, files, sets[name])
    return sets


def make_tiny_data(directory: Path, model: Path, rows: int = 14, epochs: int = 3) -> tuple[Path, Path]:
    """kept.parquet with `rows` rows and its order.parquet."""
    import random

    from scalpel.chat import load_tokenizer
    from scalpel.toy.world import monologue, problem

    tokenizer, rng = load_tokenizer(model), random.Random(1)
    table = []
    for number in range(rows):
        item = problem(rng, 4)
        trace = monologue(rng, item)
        table.append(
            {
                "row": 10 + 3 * number,  # numbers of the source: neither from zero nor dense
                "uuid": f"u{number}",
                "problem": item.text,
                "answer": str(item.answer),
                "trace": trace,
                "tokens": len(token_ids(tokenizer, item.text, trace)),
                "prompt_tokens": len(token_ids(tokenizer, item.text)),
            }
        )
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), directory / "kept.parquet")
    write_order(directory / "kept.parquet", OrderRecipe(seed=3, epochs=epochs), directory)
    return directory / "kept.parquet", directory / "order.parquet"
