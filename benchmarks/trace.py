"""python -m benchmarks.trace MODEL FACTS [THREADS]: causal tracing against one restoration at a time, in one run.

MODEL: a saved model, e.g. results/base/<name>-<digest>/model; FACTS: a parquet file with columns subject, prompt and
attribute. Both trace the same facts of the file in float32 with the same noise, 10 copies and a window of one layer;
the peer (tests/trace_reference.py) makes one forward pass of the whole prompt for each restoration. Prints seconds a
fact, the ratio, the largest difference, and the time of the whole stage over all facts.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from scalpel.analysis.trace import clean_run, effects, read_facts, tokenised_fact, trace
from scalpel.chat import load_tokenizer
from scalpel.config.analysis import TraceRecipe, TraceSettings
from scalpel.weights import load_model
from tests.trace_reference import one_at_a_time

COMPARED, SAMPLES, WINDOW, BATCH_SIZE = 8, 10, 1, 256


def main() -> None:
    model_path, facts_path = Path(sys.argv[1]), Path(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    torch.set_num_threads(threads)
    model, tokenizer = load_model(model_path, "float32"), load_tokenizer(model_path)
    rows = read_facts(facts_path, None)
    facts = [tokenised_fact(tokenizer, facts_path, row, **item) for row, item in enumerate(rows[:COMPARED])]
    width = model.get_input_embeddings().embedding_dim
    noises = [
        0.2 * np.random.default_rng(fact.row).standard_normal((SAMPLES, len(fact.subject), width)) for fact in facts
    ]

    def together():
        return [effects(model, fact, clean_run(model, fact), noise, WINDOW, BATCH_SIZE).effect
                for fact, noise in zip(facts, noises, strict=True)]  # fmt: skip

    together()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        ours = together()
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    peers = [
        one_at_a_time(model, fact.ids, fact.subject, fact.answer, noise, WINDOW)[2]
        for fact, noise in zip(facts, noises, strict=True)
    ]
    peer = time.perf_counter() - started
    difference = max(np.abs(a - b).max() for a, b in zip(ours, peers, strict=True))
    assert difference < 1e-5, difference
    print(f"{threads} thread(s), {len(facts)} facts, largest difference of an effect {difference:.1e}")
    print(f"one at a time: {1000 * peer / len(facts):.0f} ms a fact")
    print(f"scalpel: {1000 * min(seconds) / len(facts):.0f} ms a fact, ratio {peer / min(seconds):.1f}")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        recipe, settings = TraceRecipe(window=WINDOW), TraceSettings(batch_size=BATCH_SIZE, threads=threads)
        trace(model_path, facts_path, recipe, settings, Path(folder))
        print(f"the stage, all {len(rows)} facts of the file: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
