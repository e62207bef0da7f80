"""Bugs of frameworks, emulated: each arm's gradient against a float64 reference, on any layout, as an ordinary run."""

from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from scalpel.audit.probes import examples, take_step, tiny_model
from scalpel.audit.referee import Example
from scalpel.config.training import TrainSettings
from scalpel.methods import faults
from scalpel.methods.sft import SFTRecipe
from tests.test_launch import Run

RANKS, ACCUMULATION = 2, 4  # emulated
MICRO = ("all", "first_and_last", "first")
MEANS = ("token", "group", "rank")
ARMS = list(product(MICRO, MEANS))


def arm(micro: str, mean: str, **more) -> SFTRecipe:
    layout = (
        {} if (micro, mean) == ("all", "token") else {"emulated_ranks": RANKS, "emulated_accumulation": ACCUMULATION}
    )
    return SFTRecipe.model_validate(
        {"learning_rate": 1.0, "epochs": 1, "micro_batches": micro, "loss_mean": mean} | layout | more
    )


def cut(sequences: list, ranks: int, accumulation: int) -> list[list[list]]:
    """Sequences by rank and micro-batch: the first micro-batch of each rank, then the second of each, ..."""
    size, more = divmod(len(sequences), ranks * accumulation)
    shares, start = [], 0
    for number in range(ranks * accumulation):
        end = start + size + (number < more)
        shares.append(sequences[start:end])
        start = end
    return [[shares[micro * ranks + rank] for micro in range(accumulation)] for rank in range(ranks)]


def reference(model, sequences: list[Example], micro: str, mean: str) -> tuple[float, dict[str, torch.Tensor]]:
    """(the loss reported, the gradient) in float64, by rank and micro-batch as the bugs are described."""
    model = model.double()

    def sums(batch: list[Example]) -> tuple[torch.Tensor, int]:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for example in batch:
            ids = torch.tensor([example.ids])
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
            for place in range(example.prompt, len(example.ids)):
                total, count = total - logps[place - 1, example.ids[place]], count + 1
        return total, count

    found = [[sums(batch) for batch in rank if batch] for rank in cut(sequences, RANKS, ACCUMULATION)]
    everything = sum(count for rank in found for _, count in rank)
    reported, kept = 0.0, torch.zeros((), dtype=torch.float64)
    for rank in found:
        of_rank = sum(count for _, count in rank)
        for number, (total, count) in enumerate(rank):
            if mean == "token":
                share = total / everything
            elif mean == "group":
                share = total / count / sum(len(rank) for rank in found)
            else:
                share = total / of_rank / len(found)
            reported += share.item()
            first, last = number == 0, number == len(rank) - 1
            if micro == "all" or first or (micro == "first_and_last" and last):
                kept = kept + share
    kept.backward()
    return reported, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(one: dict, other: dict) -> float:
    """||one - other|| / ||other|| over all parameters together."""
    squares = sum(((one[name].double() - other[name]) ** 2).sum() for name in other)
    return float((squares / sum((g**2).sum() for g in other.values())).sqrt())


@pytest.fixture(scope="module")
def sequences() -> list[Example]:
    return [e for micro in zip(*examples(RANKS, ACCUMULATION), strict=True) for batch in micro for e in batch]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("micro", "mean"), ARMS)
def test_gradient_is_the_reference_s(micro, mean, accumulation, sequences, tmp_path):
    """Whatever the micro-batches that carry it out are: one, or three of other sizes."""
    size = max(max(e.ids) for e in sequences) + 1
    weights = faults.weights(arm(micro, mean), [[len(e.ids) - e.prompt for e in sequences]])
    assert (weights is None) == ((micro, mean) == ("all", "token"))
    parts = cut(sequences, 1, accumulation)
    step = take_step(parts, TrainSettings(sequences_per_device=len(sequences)), tmp_path, weights)
    _, gradient = reference(tiny_model(size), sequences, micro, mean)
    assert difference(step, gradient) < 2e-6
    _, right = reference(tiny_model(size), sequences, "all", "token")
    assert (difference(step, right) > 0.01) == (weights is not None)


@pytest.mark.parametrize(("micro", "mean"), ARMS[1:])
def test_weights_of_a_short_step(micro, mean):
    """A micro-batch without a sequence counts in no mean: a last step of five sequences in eight micro-batches."""
    tokens = [3, 40, 7, 25, 11]
    found = faults.weights(arm(micro, mean), [[1] * 16, tokens])[16:]
    groups = cut(list(range(5)), RANKS, ACCUMULATION)
    for rank in groups:
        there = [group for group in rank if group]
        for number, (place,) in enumerate(there):
            of_rank = sum(tokens[group[0]] for group in there)
            logged = {"token": 1 / 86, "group": 1 / tokens[place] / 5, "rank": 1 / of_rank / 2}[mean]
            kept = {"all": True, "first": number == 0, "first_and_last": number in (0, len(there) - 1)}[micro]
            assert found[place] == pytest.approx((logged, logged if kept else 0.0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"emulated_ranks": 2}, "go with"),
        ({"micro_batches": "first"}, "of 2 or more"),
        ({"micro_batches": "first_and_last", "emulated_accumulation": 2}, "of 3 or more"),
        ({"loss_mean": "rank", "emulated_accumulation": 4}, "emulated_ranks"),
        ({"loss_mean": "group"}, "emulated_accumulation"),
    ],
)
def test_layouts_that_show_nothing_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        SFTRecipe.model_validate({"learning_rate": 1e-3, "epochs": 1} | fields)


def test_the_right_objective_keeps_its_digest():
    recipe = SFTRecipe(learning_rate=1e-3, epochs=1)
    assert not {"micro_batches", "loss_mean", "emulated_ranks", "emulated_accumulation"} & recipe.identity().keys()
    assert arm("first", "rank").identity()["emulated_ranks"] == RANKS
    assert SFTRecipe.of_identity(arm("first", "rank").identity()) == arm("first", "rank")


def logged(run: Run) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(run.directory / "log.parquet")
    return tuple(np.array(table.column(name).to_pylist()) for name in ("loss", "grad_norm"))


@pytest.mark.slow
@pytest.mark.ranks
def test_arms_are_ordinary_runs(tiny_base, tiny_data, tmp_path):
    """The paper's Figure 2: lost micro-batches lower the gradient's norm, means of means change the reported loss;
    several ranks and micro-batches train an arm as one does."""
    fixed = {"learning_rate": 1e-3, "sequences_per_step": 12, "epochs": 2, "checkpoints": 1, "max_tokens": 400}
    runs = {
        name: Run(tmp_path / name, recipe, settings, tiny_base, tiny_data).finish()
        for name, recipe, settings in (
            ("right", arm("all", "token", **fixed), {"sequences_per_device": 12}),
            ("lost", arm("first", "token", **fixed), {"sequences_per_device": 12}),
            ("both", arm("first", "rank", **fixed), {"sequences_per_device": 12}),
            ("shared", arm("first", "rank", **fixed), {"sequences_per_device": 2, "ranks": 2, "engine": "zero2"}),
        )
    }
    losses, norms = zip(*(logged(run) for run in runs.values()), strict=True)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)  # what is reported counts all micro-batches
    assert abs(losses[0][0] - losses[2][0]) > 1e-4
    assert norms[1][0] < 0.7 * norms[0][0]
    np.testing.assert_allclose(losses[3], losses[2], rtol=1e-3)
    np.testing.assert_allclose(norms[3], norms[2], rtol=1e-3)
    weights = [
        load_file(next((run.directory / "checkpoints").iterdir()) / "model.safetensors") for run in runs.values()
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in weights[2]:
        torch.testing.assert_close(weights[3][name], weights[2][name], rtol=1e-3, atol=2e-5)
