"""Methods that learn from their own completions and from traces: losses against references, what they degenerate to,
real runs, exact resumption."""

import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from scalpel.audit.fingerprint import fingerprint
from scalpel.audit.rollout_probes import normaliser_and_clip
from scalpel.config.load import load
from scalpel.config.training import TrainSettings
from scalpel.errors import AGAIN, UserError
from scalpel.methods import METHODS
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.mixed import MixedTrainer
from scalpel.methods.sft import SFTRecipe
from scalpel.methods.token_losses import highest, kept_of
from scalpel.plan import Plan
from scalpel.plan.feasible import refuse_what_cannot_run
from tests import mixed_reference as reference
from tests.mixed_reference import Policy, Step, distance, look_into
from tests.test_launch import SERVER, assert_same_training, make  # noqa: F401
from tests.test_methods import files, interrupted, start, train

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"
LIBRARY = [{"text": "Add the two numbers.", "conditions": 1}, {"text": "Work from the end.", "conditions": 3},
           {"text": "Guess, then check.", "conditions": 2}]  # fmt: skip
OWN = {  # options of a tiny run, beside the defaults of the method
    "luffy": {},
    "relift": {"buffer_size": 2},
    "srft": {},
    "prefix_rft": {"low_steps": 2},
    "hpt": {"gate": 1, "skip_above": None},
    "chord": {"mu_steps": 2},
    "superrl": {},
    "uft": {"hint_steps": 2},
    "mifo": {"buffer_size": 2},
    "sasr": {"warmup_batches": 1},
    "red": {},
    "template_rl": {"templates": LIBRARY},
}
QUANTITIES = {  # what tells a method from others, in log.parquet
    "luffy": ("expert_share", "expert_probability", "expert_advantage"),
    "relift": ("buffer_size", "hard_rate", "sft_updates"),
    "srft": ("sft_weight", "rl_weight", "sequence_entropy"),
    "prefix_rft": ("prefix_low", "prefix_share", "prefix_tokens", "prefix_learnt"),
    "hpt": ("gate_rate", "expert_share"),
    "chord": ("mu", "token_weight"),
    "superrl": ("gate_rate", "expert_share"),
    "uft": ("hint_probability", "hint_share", "hint_tokens"),
    "mifo": ("buffer_size", "frozen_share", "sft_updates"),
    "sasr": ("sft_chance", "sft_batch"),
    "red": ("entropy_weight", "accuracy_weight"),
    "template_rl": ("template_distance", "template_tokens"),
}
FIRST = ("luffy", "relift", "srft", "prefix_rft", "hpt")
REST = [pytest.param(name, marks=pytest.mark.slow) for name in OWN if name not in FIRST]
NO_CLIPPING = 1e9
SETTINGS = TrainSettings(sequences_per_device=3)


def recipe(method: str, **more):
    """Two optimizer steps of each batch of 2 x 2 questions, four completions or so of each."""
    least = {
        "learning_rate": 3e-3, "questions_per_step": 2, "generations": 4, "updates": 2, "steps": 2, "checkpoints": 1,
        "max_completion_tokens": 48, "temperature": 0.9,
    }  # fmt: skip
    return METHODS[method].Recipe(**least | OWN[method] | more)


def test_every_method_of_the_table_is_tested():
    assert set(OWN) == set(QUANTITIES) == set(METHODS) - {"sft", "grpo", "mixed"}


# ---------------------------------------------------------------- losses against float64 references


def seen_steps(given, seen, base) -> list[Step]:
    policies = [Policy(base, parameters, given.temperature) for parameters in seen.parameters]
    return [
        Step(given, groups, now, policies[number // given.updates * given.updates], policies[0])
        for number, (groups, now) in enumerate(zip(seen.groups, policies, strict=True))
    ]


@pytest.mark.parametrize("method", [*FIRST, *REST])
def test_gradient_against_the_formula(method, tiny_base, tiny_data, tmp_path, monkeypatch):
    """Both steps of a batch, so that the second has ratios away from 1; rows of unequal lengths in micro-batches of
    unequal sizes. Some completions are right, in some groups none."""
    given = recipe(method, max_grad_norm=NO_CLIPPING)
    seen = look_into(monkeypatch, one_in=6 if method == "superrl" else 3)
    train(given, tiny_base, tiny_data, tmp_path / "run", SETTINGS)
    for step, found in zip(seen_steps(given, seen, tiny_base), seen.gradients, strict=True):
        loss = getattr(reference, method)(step)
        assert distance(found, step.now.gradient(loss)) < 2e-5
    rollouts = [r for groups in seen.groups for group in groups for r in group]
    traces = {r.origin for r in rollouts} - {"own"}
    assert traces == {
        "prefix_rft": {"mixed"}, "uft": {"mixed"}, "relift": set(), "mifo": set(), "template_rl": set()
    }.get(method, {"expert"})  # fmt: skip
    assert {r.rewards["accuracy"] for r in rollouts} >= {0.0, 1.0} or method == "sasr"
    if method in ("hpt", "superrl"):
        assert {g[-1].origin for groups in seen.groups for g in groups} == {"own", "expert"}


def test_clip_binds_in_the_second_step(tiny_base, tiny_data, tmp_path, monkeypatch):
    """So that the references above have seen it."""
    look_into(monkeypatch)
    train(recipe("prefix_rft", max_grad_norm=NO_CLIPPING), tiny_base, tiny_data, tmp_path / "run", SETTINGS)
    first, second = pq.read_table(tmp_path / "run" / "log.parquet").to_pylist()
    assert first["clipped_fraction"] == 0 < second["clipped_fraction"]


@pytest.mark.parametrize("method", ["relift", pytest.param("mifo", marks=pytest.mark.slow)])
def test_sft_update_against_the_formula(method, tiny_base, tiny_data, tmp_path, monkeypatch):
    given = recipe(method, sft_max_grad_norm=NO_CLIPPING, sft_learning_rate=1e-3, buffer_size=3)
    seen = look_into(monkeypatch, one_in=1000)  # none is right: all questions are hard
    train(given, tiny_base, tiny_data, tmp_path / "run", SETTINGS)
    (before, after, moments), = seen.second  # fmt: skip
    policy = Policy(tiny_base, before, given.temperature)
    order = [group[0].row for groups in seen.groups for group in groups]
    log = pq.read_table(tmp_path / "run" / "demonstrations.parquet").to_pylist()
    assert [item["row"] for item in log] == order[:3] and {item["step"] for item in log} == {2}
    traces = demonstrations_of(tiny_base, tiny_data, order[:3])
    share = getattr(given, "entropy_share", 1.0)
    loss = reference.demonstrations(policy, traces, share, given.sft_entropy_coefficient)
    found = {name: moment / 0.1 for name, moment in moments.items()}
    wanted = policy.gradient(loss)
    last = pq.read_table(tmp_path / "run" / "log.parquet").to_pylist()[-1]
    assert last["sft_loss"] == pytest.approx(float(loss.detach()), rel=1e-5) and last["sft_updates"] == 1
    if method == "relift":
        return check_relift(found, wanted)
    for name, gradient in wanted.items():
        moved = (before[name] - seen.parameters[0][name]).abs()
        frozen = (moved >= moved.flatten().sort(descending=True).values[moved.numel() // 2 - 1]) & (moved > 0)
        assert (after[name] == before[name])[frozen].all() and frozen.any()
        gradient[frozen] = 0
    assert distance(found, wanted) < 2e-5


def check_relift(found, wanted):
    assert distance(found, wanted) < 2e-5


def demonstrations_of(base, data, rows):
    from scalpel.chat import load_tokenizer, token_ids
    from scalpel.methods.rollouts import Rollout

    tokenizer = load_tokenizer(base)
    by_row = {item["row"]: item for item in pq.read_table(data[0]).to_pylist()}
    found = []
    for row in rows:
        item = by_row[row]
        prompt = token_ids(tokenizer, item["problem"])
        whole = token_ids(tokenizer, item["problem"], item["trace"])
        found.append(Rollout(row, -1, 0, prompt, whole[len(prompt) :], True))
    return found


# ---------------------------------------------------------------- what they degenerate to

AS_GRPO = {
    "luffy": {"experts": 0, "epsilon": 0.2},
    "relift": {"buffer_size": 10**6, "epsilon": 0.2},
    "hpt": {"gate": -1, "epsilon": 0.2},
    "chord": {"mu_first": 0.0, "mu_last": 0.0},
    "superrl": {"sft_weight": 0.0},
    "uft": {"hint_first": 0.0, "hint_last": 0.0, "beta": 0.0},
    "mifo": {"buffer_size": 10**6, "epsilon": 0.2},
    "sasr": {"warmup_batches": 0, "chance": 0.0},
    "red": {"sft_weight": 0.0},
    "template_rl": {"templates": ()},
}
AS_SFT = {
    "srft": {"sft_scale": 1.0, "sft_exponent": 0.0, "rl_scale": 0.0, "wrong_weight": 0.0, "demonstration_weight": 0.0},
    "hpt": {"gate": 4},
    "chord": {"mu_first": 1.0, "mu_last": 1.0, "token_weight": "none"},
    "sasr": {"chance": 1.0},
}
COMMON = {
    "normaliser": "completions", "entropy_coefficient": 0.0, "scale_rewards": "none", "max_grad_norm": NO_CLIPPING,
    "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip


def marked(methods) -> list:
    return [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in methods]


def gradients_of(given, base, data, out) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        seen = look_into(patch)
        train(given, base, data, out, SETTINGS)
    return seen.gradients


@pytest.fixture(scope="module")
def grpo(tiny_base, tiny_data, tmp_path_factory):
    fields = recipe("luffy", **COMMON).model_dump(include=set(GRPORecipe.model_fields) - {"method", "scale_rewards"})
    given = GRPORecipe(**fields | {"epsilon": 0.2, "loss_type": "dr_grpo"})
    return gradients_of(given, tiny_base, tiny_data, tmp_path_factory.mktemp("grpo") / "run")


@pytest.mark.parametrize("method", marked(AS_GRPO))
def test_degenerates_to_grpo(method, grpo, tiny_base, tiny_data, tmp_path):
    """TRL's own loss over the same completions, in both steps of a batch."""
    found = gradients_of(recipe(method, **COMMON | AS_GRPO[method]), tiny_base, tiny_data, tmp_path / "run")
    assert distance(found[0], grpo[0]) < 1e-5 and distance(found[1], grpo[1]) < 1e-3


def test_prefix_rft_without_prefixes_is_grpo(tiny_base, tiny_data, tmp_path, monkeypatch):
    """Its last completion of each group has random numbers of its own, so the loss is compared, not the run."""
    given = recipe("prefix_rft", low_first=0.0, low_last=0.0, high=0.0, max_grad_norm=NO_CLIPPING)
    seen = look_into(monkeypatch)
    train(given, tiny_base, tiny_data, tmp_path / "run", SETTINGS)
    assert {r.origin for groups in seen.groups for group in groups for r in group} == {"own"}
    for step, found in zip(seen_steps(given, seen, tiny_base), seen.gradients, strict=True):
        terms = reference.own_terms(step, step.groups, reference.clipped)
        loss = torch.cat([t for t, _ in terms]).mean() - reference.explored(step, [e for _, e in terms])
        assert distance(found, step.now.gradient(loss)) < 2e-5


@pytest.fixture(scope="module")
def sft(tiny_base, tiny_data, tmp_path_factory):
    given = SFTRecipe(
        learning_rate=3e-3, matching="questions", questions_per_step=2, steps=2, checkpoints=1, max_tokens=400,
        max_grad_norm=NO_CLIPPING, schedule="constant", loss_on="completion",
    )  # fmt: skip
    return gradients_of(given, tiny_base, tiny_data, tmp_path_factory.mktemp("sft") / "run")


@pytest.mark.parametrize("method", marked(AS_SFT))
def test_degenerates_to_sft(method, sft, tiny_base, tiny_data, tmp_path):
    """The SFT of this package on the same questions."""
    more = COMMON | AS_SFT[method] | {"temperature": 1.0, "max_completion_tokens": 400}
    found = gradients_of(recipe(method, **more), tiny_base, tiny_data, tmp_path / "run")
    assert distance(found[0], sft[0]) < 1e-5 and distance(found[1], sft[1]) < 1e-3


# ---------------------------------------------------------------- real runs


def longer(method: str):
    """Three batches of rollouts, a state after each step, in the midst of a batch, too."""
    return recipe(method, steps=6, checkpoints=6, learning_rate=1e-3)


class Torn(Exception):
    pass


@pytest.mark.parametrize(
    "method", ["relift", *(pytest.param(name, marks=pytest.mark.slow) for name in OWN if name != "relift")]
)
def test_trains_and_resumes_bitwise(method, tiny_base, tiny_data, tmp_path, monkeypatch):
    """Graded for real; stopped in the midst of the second and of the third batch of rollouts."""
    given, torn = longer(method), tmp_path / "torn"
    train(given, tiny_base, tiny_data, tmp_path / "whole", SETTINGS)
    log = pq.read_table(tmp_path / "whole" / "log.parquet").to_pylist()
    for name in QUANTITIES[method]:
        assert any(row[name] is not None for row in log), name
    assert len(log) == 6 and all(row["grad_norm"] > 0 for row in log)
    after_log = MixedTrainer.after_log
    for last in (4, 6):

        def tear(self, logs, last=last):
            after_log(self, logs)
            if self.state.global_step == last:
                raise Torn

        with monkeypatch.context() as patch:
            patch.setattr(MixedTrainer, "after_log", tear)
            with pytest.raises(Torn):
                train(given, tiny_base, tiny_data, torn, SETTINGS)
    train(given, tiny_base, tiny_data, torn, SETTINGS)
    assert files(torn) == files(tmp_path / "whole")


@pytest.mark.campaign
@pytest.mark.parametrize("method", OWN)
def test_killed_at_any_moment_ends_bitwise_equal(method, tiny_base, tiny_data, tmp_path):
    assert start(longer(method), tiny_base, tiny_data, tmp_path / "whole").wait() == 0
    interrupted(longer(method), tiny_base, tiny_data, tmp_path / "torn")
    assert start(longer(method), tiny_base, tiny_data, tmp_path / "torn").wait() == 0
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    "method", ["luffy", *(pytest.param(name, marks=pytest.mark.campaign) for name in OWN if name != "luffy")]
)
def test_two_ranks_train_as_one(method, make):  # noqa: F811
    """By the engine that the method has on a cluster, completions by a server. Five questions x 4 rows do not divide by
    ranks x micro-batch."""
    scale = yaml.safe_load((WORKFLOW / "scales" / "cluster.yaml").read_text())
    engine = TrainSettings.model_validate(scale["train_settings"]).of(method).engine
    more = {"updates": 1, "steps": 3, "learning_rate": 1e-3, "temperature": 1.0}
    given = recipe(method, questions_per_step=5, generations=4 if method == "template_rl" else 3, **more)
    one = make(given, {"sequences_per_device": 8, "server": SERVER}).finish()
    two = make(given, {"ranks": 2, "engine": engine, "sequences_per_device": 2, "server": SERVER}).finish()
    assert_same_training(two, one)
    for name in QUANTITIES[method]:
        np.testing.assert_allclose(
            two.column(name).astype(float), one.column(name).astype(float), rtol=1e-3, atol=1e-6, err_msg=name
        )
    if method == "relift":
        assert one.column("sft_updates").sum() > 0
        np.testing.assert_allclose(two.column("sft_loss"), one.column("sft_loss"), rtol=1e-3)


@pytest.mark.ranks
@pytest.mark.campaign
@pytest.mark.parametrize(("method", "engine"), [("luffy", "zero2"), ("relift", "fsdp")])
def test_two_ranks_resume_in_the_midst_of_a_batch(method, engine, make):  # noqa: F811
    """Stopped after the first of two steps of a batch of rollouts."""
    given = recipe(method, questions_per_step=4, generations=3, updates=2, steps=6, learning_rate=1e-3, temperature=1.0)
    settings = {"ranks": 2, "engine": engine, "sequences_per_device": 2, "server": SERVER}
    whole, stopped = make(given, settings).finish(), make(given, settings)
    process = stopped.start("clock.jsonl:1")
    stopped.held("clock.jsonl:1", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == AGAIN, stopped.log()
    stopped.finish()
    assert "resuming from step 1" in stopped.log()
    assert_same_training(stopped, whole)


def test_the_study_plans_at_laptop_scale():
    """A run of every method that needs nothing given; each can be carried out and its cost be told."""
    plan = Plan(load({"studies": ["sft_then_rl"]}, WORKFLOW), WORKFLOW)
    refuse_what_cannot_run(plan)
    methods = {spec.recipe.method for spec in plan.config.studies["sft_then_rl"].runs.values()}
    assert methods == {"sft", "grpo", *OWN} - {"template_rl"}


# ---------------------------------------------------------------- parts


def test_highest_keeps_the_share_of_each_row():
    values = torch.tensor([[3.0, 1.0, 2.0, 9.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    among = torch.tensor([[True, True, True, False, True], [True] * 5])
    assert highest(values, among, 0.5).tolist() == [[True, False, False, False, True], [True, True, True, False, False]]
    assert [kept_of(n, 0.2) for n in (0, 1, 4, 5, 10, 11)] == [0, 1, 1, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN)
def test_audit_takes_their_step(method):
    """The gate of every run: each method's trainer is probed on a step of its own."""
    settings = TrainSettings()
    asked = fingerprint(settings, recipe(method))["rollouts"]
    probes = normaliser_and_clip(asked, settings, 4)
    assert all(probe[1] for probe in probes), probes


@pytest.mark.parametrize("method", ["relift", "mifo", "hpt"])
def test_what_zero2_cannot_do_is_refused(method):
    with pytest.raises(UserError, match=r"engine: zero2|skip_above"):
        METHODS[method].check(recipe(method, **({"skip_above": 80.0} if method == "hpt" else {})),
                              TrainSettings(engine="zero2", ranks=2))  # fmt: skip


def test_hpt_leaves_out_steps_above_its_norm(tiny_base, tiny_data, tmp_path):
    """Weights stay as they were, weight decay aside, too; the other step is taken."""
    given = recipe("hpt", weight_decay=0.1, checkpoints=2)
    train(given, tiny_base, tiny_data, tmp_path / "all", SETTINGS)
    norms = pq.read_table(tmp_path / "all" / "log.parquet")["grad_norm"].to_pylist()
    given = given.model_copy(update={"skip_above": 0.999 * max(norms)})
    train(given, tiny_base, tiny_data, tmp_path / "run", SETTINGS)
    models = [Path(tiny_base), *sorted((tmp_path / "run").glob("checkpoints/*"))]
    start, first, second = (load_file(path / "model.safetensors") for path in models)
    equal = [all(torch.equal(a[n], b[n]) for n in a) for a, b in ((start, first), (first, second))]
    assert equal == [norms[0] > norms[1], norms[0] < norms[1]]
