"""The audit: the installed stack passes, planted bugs are named, and another stack never passes an old audit."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from scalpel.artifact.job import open_job
from scalpel.artifact.stage import check_gates
from scalpel.artifact.step import Step, record_recipe
from scalpel.audit import chat_probe, probes, referee, rollout_probes
from scalpel.audit import fingerprint as stamp
from scalpel.audit.formulas import FORMULAS, NORMALISERS
from scalpel.audit.probes import audit, examples, probe, take_step, tiny_model
from scalpel.chat import TEMPLATES, load_tokenizer, template_text
from scalpel.config.load import load
from scalpel.config.training import TrainSettings
from scalpel.errors import UserError
from scalpel.methods import METHODS, likelihood
from scalpel.methods.grpo import GRPORecipe
from scalpel.methods.mixed import MixedTrainer
from scalpel.methods.rollouts import RolloutTrainer
from scalpel.methods.sft import SFTRecipe
from scalpel.plan import Plan
from tests.finished import finish

ROOT = Path(__file__).resolve().parent.parent
SINGLE = TrainSettings()
OF_ALL = ["accumulation", "aggregation", "masking", "precision", "chat template"]  # probes of every method


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_installed_stack_passes(accumulation, tiny_base, tmp_path):
    audit(SINGLE, {"accumulation": accumulation}, tiny_base, tmp_path)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert [p["name"] for p in found] == OF_ALL
    assert all(p["passed"] for p in found)
    assert all(p["expected"] and p["tolerance"] for p in found)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_step_is_the_referee_s(accumulation, tmp_path):
    """To 1e-6, float32; of the other engines test_several_ranks_pass says so."""
    batches = examples(1, accumulation)
    step = take_step(batches, SINGLE, tmp_path)
    verdict = referee.classify(step, tiny_model(step["model.embed_tokens.weight"].shape[0]), batches)
    assert verdict.name == "token mean" and verdict.from_right < referee.TOLERANCE


@pytest.mark.parametrize("name", list(referee.objectives(None, [])))
def test_every_wrong_objective_is_told_apart(name):
    """Two ranks, four micro-batches: the referee's own step of each objective is classified as that and as no other."""
    batches = examples(2, 4)
    model = tiny_model(64)
    gradient = referee._gradients(model, referee.objectives(model, batches)[name]())
    assert referee.classify(gradient, tiny_model(64), batches).name == name


PLANTED = {
    "first micro-batch alone": "accumulation",
    "mean of micro-batch means": "aggregation",
    "prompt in the loss": "masking",
    "EOS not in the loss": "masking",
}


@pytest.mark.parametrize(("bug", "name"), PLANTED.items())
def test_planted_bugs_are_caught_and_named(bug, name, tiny_base, monkeypatch, tmp_path):
    """Each is put into the trainer itself, as a framework's bug would be."""
    trainer = likelihood.LikelihoodTrainer
    original, made = trainer.compute_loss, likelihood.Places.__getitem__

    def compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kwargs):
        if bug == "mean of micro-batch means":
            num_items_in_batch = 4 * (inputs["labels"][:, 1:] != -100).sum()
        loss = original(self, model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        self.seen = getattr(self, "seen", 0) + 1
        return loss * 0 if bug == "first micro-batch alone" and self.seen > 1 else loss

    def item(self, position):
        found = made(self, position)
        if bug == "prompt in the loss" and position >= 0:
            found["labels"] = [-100, *found["input_ids"][1:]]
        if bug == "EOS not in the loss" and position >= 0:
            found["labels"] = [*found["labels"][:-1], -100]
        return found

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    monkeypatch.setattr(likelihood.Places, "__getitem__", item)
    found = probe(SINGLE, 4)
    assert name in [p.name for p in found if not p.passed]
    assert bug in next(p.found for p in found if p.name in ("aggregation", "masking"))
    with pytest.raises(UserError, match=f"fails the audit's probe of {name}"):
        audit(SINGLE, {"accumulation": 4}, tiny_base, tmp_path)
    assert not all(p["passed"] for p in json.loads((tmp_path / "audit.json").read_text()))


def test_what_is_known_of_a_bug_is_said():
    lost = probes.Probe("accumulation", False, "the gradient is that of: first and last micro-batch alone")
    assert "Installed is deepspeed" in probes.known(lost) and "0.19.0 does not" in probes.known(lost)


def test_a_failed_probe_without_a_known_objective_names_versions():
    """Those on record for the probe, and those of the packages that take the step."""
    here = f"Installed are transformers {metadata.version('transformers')} and trl {metadata.version('trl')}; "
    masking = probes.Probe("masking", False, "the gradient is that of: EOS not in the loss")
    assert probes.known(masking) == (
        f" {here}on record: verl 0.6.0 to 0.7.0 train on the last token of the prompt and never on EOS."
    )
    precision = probes.Probe("precision", False, "relative difference 3.0e-05")
    assert probes.known(precision) == f" {here}no version that does so is known here."
    gradient = probes.Probe("aggregation", False, "the gradient is that of: none that is known")
    assert f"{here}on record: rank means: transformers" in probes.known(gradient)


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(probes.metadata, "version", absent)
    lost = probes.Probe("accumulation", False, "the gradient is that of: first micro-batch alone")
    assert "Installed is no deepspeed;" in probes.known(lost)


def test_fingerprint_follows_from_stack_and_layout():
    sft = SFTRecipe(learning_rate=1e-3, epochs=1, sequences_per_step=64)
    one = stamp.fingerprint(SINGLE, sft)
    assert one["accumulation"] == 1 and one["packages"]["torch"] == metadata.version("torch")
    many = stamp.fingerprint(TrainSettings(sequences_per_device=8), sft)
    assert many["accumulation"] == 4 == stamp.fingerprint(TrainSettings(sequences_per_device=22), sft)["accumulation"]
    assert stamp.fingerprint(TrainSettings(sequences_per_device=32), sft)["accumulation"] == 2
    ranks = TrainSettings(ranks=2, engine="zero2", sequences_per_device=32, offload=True)
    found = stamp.fingerprint(ranks, GRPORecipe(learning_rate=1e-3, questions_per_step=8, generations=8))
    assert (found["engine"], found["offload"], found["ranks"], found["accumulation"]) == ("zero2", True, 2, 1)


# ---------------------------------------------------------------- methods that sample

SAMPLING = [method.name for method in METHODS.values() if method.samples and method.name != "mixed"]  # tests/mixed.py
ASKED = {"method": "grpo", "loss_type": "dr_grpo", "inference": "transformers", "temperature": 0.7}


@pytest.mark.parametrize("loss_type", ["dr_grpo", "dapo", "grpo"])
def test_normaliser_and_clip_norm_act_as_named(loss_type):
    """In float32 and to 1e-4, over three micro-batches of unequal lengths, one completion of each question cut off."""
    found = rollout_probes.normaliser_and_clip(ASKED | {"loss_type": loss_type}, SINGLE, 3)
    assert [probe.name for probe in found] == ["normaliser", "clip norm"] and all(probe.passed for probe in found), (
        found
    )
    assert f"over: {rollout_probes.OF_LOSS_TYPES[loss_type]};" in found[0].found


def test_the_default_fields_of_each_method_that_samples_are_probed():
    for method in METHODS.values():
        if method.name in SAMPLING:
            seal = stamp.fingerprint(SINGLE, method.Recipe(learning_rate=1e-3))
            assert seal["rollouts"]["method"] == method.name and "learning_rate" not in seal["rollouts"]
            found = rollout_probes.normaliser_and_clip(seal["rollouts"], SINGLE, 2)
            assert all(probe.passed for probe in found), found
            assert "None" not in found[0].expected and float(found[1].expected) > 0
    assert "rollouts" not in stamp.fingerprint(SINGLE, SFTRecipe(learning_rate=1, epochs=1))


OF_REWARDS = {
    "times 64": "over: sequences x max_completion_tokens, times 64;",
    "micro-batch means": "over: tokens of each micro-batch, then micro-batches; its recipe asks for sequences x",
    "unknown": "none that is known",
}


@pytest.mark.parametrize(("bug", "words"), OF_REWARDS.items())
def test_planted_normalisers_are_told(bug, words, monkeypatch):
    """Put into the trainer itself: verl's sum over micro-batches, another loss type than was asked for, a weight."""
    original = RolloutTrainer.loss

    def loss(self, model, inputs):
        if bug == "micro-batch means":
            self.loss_type = "bnpo"
        if bug == "unknown":
            inputs = inputs | {"advantages": inputs["advantages"] ** 3}
        return original(self, model, inputs) * (64 if bug == "times 64" else 1)

    monkeypatch.setattr(RolloutTrainer, "loss", loss)
    normaliser, _ = rollout_probes.normaliser_and_clip(ASKED, SINGLE, 3)
    assert not normaliser.passed and words in normaliser.found
    assert "Installed is trl" in probes.known(normaliser)


ANOTHER = {"ranks": "tokens", "completions": "tokens", "tokens": "completions"}


def asked_of(method: str, **more) -> dict:
    return stamp.fingerprint(SINGLE, METHODS[method].Recipe(learning_rate=1e-3, **more))["rollouts"]


@pytest.mark.parametrize("method", SAMPLING)
def test_a_loss_64_times_too_large_is_told_of_every_method(method, monkeypatch):
    """Put into the trainer itself, beneath what the method overrides."""
    compute_loss = RolloutTrainer.compute_loss
    of = MixedTrainer if method in FORMULAS else RolloutTrainer
    monkeypatch.setattr(of, "compute_loss", lambda self, *given, **more: 64 * compute_loss(self, *given, **more))
    found, _ = rollout_probes.normaliser(asked_of(method), SINGLE, 2)
    assert not found.passed and re.search(r", times (64|63\.9999\d*|64\.0000\d*);", found.found), found


@pytest.mark.parametrize("method", SAMPLING)
def test_another_normaliser_is_told_of_every_method(method, monkeypatch):
    """The policy terms over what another `normaliser` says; GRPO's over the tokens of each micro-batch."""
    original = MixedTrainer.loss if method in FORMULAS else RolloutTrainer.loss

    def loss(self, model, inputs):
        if method not in FORMULAS:
            self.loss_type = "bnpo"
            return original(self, model, inputs)
        asked, self.recipe = self.recipe, self.recipe.model_copy(update={"normaliser": other})
        try:
            return original(self, model, inputs)
        finally:
            self.recipe = asked

    asked = asked_of(method)
    other = ANOTHER.get(asked.get("normaliser"))
    monkeypatch.setattr(MixedTrainer if method in FORMULAS else RolloutTrainer, "loss", loss)
    found, _ = rollout_probes.normaliser(asked, SINGLE, 2)
    named = NORMALISERS[other] if other else rollout_probes.OF_LOSS_TYPES["bnpo"]
    assert not found.passed and f"over: {named}" in found.found, found


OF_PARTS = {  # what is planted -> the method, and what is said of it
    "traces by micro-batch": ("chord", "tokens of each micro-batch, then micro-batches (likelihood terms)"),
    "advantages over the traces alone": ("luffy", "none that is known"),
    "no entropy": ("hpt", "none that is known"),
    "prefixes whole": ("prefix_rft", "none that is known"),
}


@pytest.mark.parametrize("bug", OF_PARTS)
def test_planted_parts_of_a_formula_are_told(bug, monkeypatch):
    """Other parts of the loss than its scale, put into the trainer itself."""
    method, words = OF_PARTS[bug]
    loss, credit = MixedTrainer.loss, MixedTrainer.credit

    def planted(self, model, inputs):
        if bug == "traces by micro-batch":
            mean = (2 * inputs["likelihood"].sum()).clamp(min=1)
            inputs = inputs | {"likelihood_tokens": mean}
        if bug == "no entropy":
            inputs = inputs | {"num_items_in_batch": torch.tensor(10**9)}
        return loss(self, model, inputs)

    def credited(self, groups):
        credit(self, groups)
        for rollout in [r for group in groups for r in group if r.origin != "own"]:
            rollout.advantage += bug == "advantages over the traces alone"

    monkeypatch.setattr(MixedTrainer, "loss", planted)
    monkeypatch.setattr(MixedTrainer, "credit", credited)
    if bug == "prefixes whole":
        monkeypatch.setattr("scalpel.methods.prefix_rft_trainer.highest", lambda entropies, among, share: among)
    found, _ = rollout_probes.normaliser(asked_of(method), SINGLE, 2)
    assert not found.passed and words in found.found, found


OF_OPTIONS = [
    ("luffy", {"shaping": "ratio", "mean_over": "own", "normaliser": "tokens"}),
    ("srft", {"own_term": "probability", "rl_exponent": -1.0, "shaping": "log"}),
    ("prefix_rft", {"estimator": "split", "normaliser": "ranks"}),
    ("prefix_rft", {"estimator": "prefix", "mask_truncated_completions": True}),
    ("hpt", {"gate": 2, "sft_weight": 0.5}),
    ("hpt", {"gate": -1, "scale_rewards": "group"}),
    ("chord", {"token_weight": "none", "mu_first": 0.5}),
    ("chord", {"mu_warmup": 3, "token_weight": "p"}),
    ("template_rl", {"templates": [{"text": "Add.", "conditions": 1}, {"text": "Guess.", "conditions": 3}],
                     "mean_over": "template"}),
    ("red", {"accuracy_base": 1.0, "entropy_coefficient": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), OF_OPTIONS, ids=str)
def test_named_options_are_in_the_formulas(method, options):
    found, norm = rollout_probes.normaliser(asked_of(method, **options), SINGLE, 2)
    assert found.passed and norm > 0, found


def test_every_method_but_grpo_has_a_formula():
    assert {*FORMULAS, "grpo"} == set(SAMPLING)


def test_a_method_that_nothing_is_known_of_does_not_pass(monkeypatch):
    monkeypatch.delitem(FORMULAS, "relift")
    found, _ = rollout_probes.normaliser(asked_of("relift"), SINGLE, 1)
    assert not found.passed and "no formula of relift" in found.found


def test_a_clip_norm_that_does_not_act_is_told(monkeypatch):
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda self, *_, **__: torch.tensor(1.0))
    normaliser, clip = rollout_probes.normaliser_and_clip(ASKED, SINGLE, 2)
    assert normaliser.passed and not clip.passed and "is clipped to" in clip.found


# ---------------------------------------------------------------- chat template and special tokens


def base_with(tiny_base: Path, folder: Path, template: str | None = None, bos: bool = False) -> Path:
    """The tiny base's tokenizer with another template, or with a post-processor that puts a BOS in front."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = template or tokenizer.chat_template
    if bos:
        mark = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{mark} $A", special_tokens=[(mark, tokenizer.eos_token_id)]
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
@pytest.mark.parametrize("bos", [False, True])
def test_every_stage_feeds_the_same_ids(template, bos, tiny_base, tmp_path):
    """Under every named template, whatever the tokenizer's post-processor would add."""
    base = base_with(tiny_base, tmp_path, template_text(template), bos)
    assert (len(load_tokenizer(base)("a")["input_ids"]) > len(load_tokenizer(tiny_base)("a")["input_ids"])) == bos
    found = chat_probe.chat_template(base)
    assert found.passed and found.found == "other ids than SFT's: none"


def test_stages_that_feed_other_ids_are_named(tiny_base, monkeypatch):
    from scalpel.evaluation.lm_eval_engine import LMEvalEngine

    rendered, asked = RolloutTrainer.rendered, LMEvalEngine.apply_chat_template
    monkeypatch.setattr(RolloutTrainer, "rendered", lambda self, *words: [*rendered(self, *words), 7])
    monkeypatch.setattr(LMEvalEngine, "apply_chat_template", lambda self, turns: "!" + asked(self, turns))
    found = chat_probe.chat_template(tiny_base)
    assert not found.passed
    assert "rollouts (token " in found.found and "lm-eval (token 0 of the prompt is '!', SFT's" in found.found
    assert "KL" not in found.found and "LightEval" not in found.found


def test_a_stage_that_lets_the_tokenizer_add_bos_is_seen_on_the_run_s_own_tokenizer(tiny_base, tmp_path, monkeypatch):
    """A tokenizer without a post-processor hides it; the base model that the runs start from has one."""
    from scalpel.evaluation.lm_eval_engine import LMEvalEngine

    monkeypatch.setattr(LMEvalEngine, "tok_encode", lambda self, text, **_: self.tokenizer(text)["input_ids"])
    assert chat_probe.chat_template(tiny_base).passed
    found = chat_probe.chat_template(base_with(tiny_base, tmp_path, bos=True))
    assert not found.passed and "evaluation by lm-eval (token 1 of the prompt is '<|endoftext|>'" in found.found


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ strftime_now('%d %b') }}\n%s", "every stage on another day, which the template writes"),
        ("{%% if messages|length > 2 %%}{{ messages[9]['content'] }}{%% endif %%}%s", "none"),
        ("{{ raise_exception('no') }}%s", "the stages' ids cannot be compared: no"),
    ],
    ids=["clock", "harmless", "broken"],
)
def test_the_run_s_own_template_is_probed(template, words, tiny_base, tmp_path):
    own = load_tokenizer(tiny_base).chat_template
    found = chat_probe.chat_template(base_with(tiny_base, tmp_path, template.replace("%%", "%").replace("%s", own)))
    assert words in found.found and found.passed == (words == "none")


def test_an_answer_that_does_not_end_as_sampling_does_is_told(tiny_base, tmp_path):
    own = load_tokenizer(tiny_base).chat_template
    found = chat_probe.chat_template(base_with(tiny_base, tmp_path, own.replace("eos_token", "'!!!'")))
    assert not found.passed and "the end of an answer" in found.found


def test_a_run_of_sft_is_stopped_by_its_own_template(tiny_base, tmp_path):
    clock = "{{ strftime_now('%d') }}" + load_tokenizer(tiny_base).chat_template
    base = base_with(tiny_base, tmp_path / "base", clock)
    (tmp_path / "audit").mkdir()
    with pytest.raises(UserError, match=r"probe of chat template: .*Installed are transformers .* and tokenizers"):
        audit(SINGLE, {"accumulation": 1}, base, tmp_path / "audit")


def gates_of(overrides: dict) -> list[Step]:
    """The audit of every training run of a plan."""
    plan = Plan(load({"overrides": overrides}, ROOT / "workflow"), ROOT / "workflow", Path("/nowhere"))
    return [e.step.gates["audit"] for entries in plan.entries.values() for e in entries if e.stage == "train"]


def test_another_template_is_another_audit_and_equal_runs_share_one():
    gates = gates_of({})
    asked = {json.dumps([gate.recipe, gate.inputs["base"].digest], sort_keys=True): gate.digest for gate in gates}
    assert len(set(asked.values())) == len(asked) < len(gates)
    others = gates_of({"models": {"toy": {"chat_template": "sft_then_rl"}}})
    assert [gate.recipe for gate in others] == [gate.recipe for gate in gates]
    assert not {gate.digest for gate in others} & {gate.digest for gate in gates}


# ---------------------------------------------------------------- engines and whole audits


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_rollouts_are_the_trainer_s(temperature):
    found = rollout_probes.log_probabilities("transformers", ASKED | {"temperature": temperature}, SINGLE)
    assert found.passed and "1e-04 are allowed" in found.found, found


def test_log_probabilities_of_another_temperature_are_told(monkeypatch):
    """The trainer's at the recipe's temperature, the rollouts at one a tenth above."""
    warmer = rollout_probes.ENGINE.replace('asked["temperature"]', '1.1 * asked["temperature"]')
    monkeypatch.setattr(rollout_probes, "ENGINE", warmer)
    found = rollout_probes.log_probabilities("transformers", ASKED, SINGLE)
    assert not found.passed and "nats at most" in found.found


def test_an_engine_that_is_asked_for_and_absent_is_told():
    found = rollout_probes.log_probabilities("no_such_engine", ASKED, SINGLE)
    assert not found.passed and "not installed here" in found.found


def test_an_audit_of_a_method_that_samples_holds_all_probes(tiny_base, tmp_path):
    recipe = GRPORecipe(learning_rate=1e-3, questions_per_step=2, generations=4)
    audit(SINGLE, stamp.fingerprint(SINGLE, recipe), tiny_base, tmp_path)
    found = {probe["name"]: probe["passed"] for probe in json.loads((tmp_path / "audit.json").read_text())}
    of_rollouts = ["normaliser", "clip norm", "log-probabilities of transformers"]
    assert list(found) == [*OF_ALL, *of_rollouts] and all(found.values())


def test_another_stack_never_passes_an_old_audit(tmp_path, monkeypatch):
    """The job on its node compares its packages with the audit's, whatever the plan found where it was made."""
    settings = SINGLE.model_dump(mode="json")
    gate = Step("audit", "single", 1, {"fingerprint": stamp.fingerprint(SINGLE, SFTRecipe(learning_rate=1, epochs=1))})
    step = Step("train", "x", 1, {}, {}, settings, {"audit": gate})
    for made in (gate, step):
        record_recipe(made, tmp_path)
    (tmp_path / gate.manifest).write_text("{}")
    check_gates(open_job(tmp_path / step.directory))
    here = stamp.versions(stamp.PACKAGES)
    monkeypatch.setattr(stamp, "versions", lambda packages: here | {"deepspeed": "0.18.9"})
    with pytest.raises(UserError, match=r"audited deepspeed .*, this node has 0\.18\.9"):
        check_gates(open_job(tmp_path / step.directory))


SHARED_OUT = ({"engine": "zero2"}, {"engine": "zero2", "offload": True}, {"engine": "fsdp"})


def rest(*given):
    return pytest.param(*given, marks=pytest.mark.campaign)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "layout", "method", "accumulation"),
    [
        (2, {"engine": "zero2"}, "sft", 4),
        (2, {"engine": "fsdp"}, "grpo", 4),
        rest(2, {"engine": "zero2"}, "grpo", 4),
        rest(2, {"engine": "zero2", "offload": True}, "sft", 4),
        rest(2, {"engine": "zero2", "offload": True}, "grpo", 4),
        rest(2, {"engine": "fsdp"}, "sft", 4),
        *(rest(2, {"engine": "zero2"}, method, 2) for method in ("luffy", "prefix_rft", "chord", "sasr")),
        *(rest(2, {"engine": "fsdp"}, method, 2) for method in ("relift", "hpt", "srft")),
        *(rest(2, layout, "sft", 1) for layout in SHARED_OUT),
        *(rest(1, layout, "sft", accumulation) for layout in SHARED_OUT for accumulation in (1, 4)),
    ],
    ids=str,
)
def test_several_ranks_pass(ranks, layout, method, accumulation, tiny_base, tmp_path):
    """All probes, and the likelihood trainer's step is the referee's to 1e-6 on every engine."""
    settings = TrainSettings(ranks=ranks, sequences_per_device=4, **layout)
    sft = SFTRecipe(learning_rate=1, epochs=1, sequences_per_step=4 * ranks * accumulation)
    of_method = METHODS[method].Recipe
    recipe = sft if method == "sft" else of_method(learning_rate=1, questions_per_step=128, generations=4)
    seal = stamp.fingerprint(settings, recipe) | {"accumulation": accumulation}
    base = Step("base", "tiny", 1, {})
    finish(base, tmp_path, {"model": tiny_base})
    step = Step("audit", "x", 1, {"fingerprint": seal}, {"base": base}, settings.model_dump(mode="json"))
    record_recipe(step, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.audit", str(tmp_path / step.directory)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / step.directory / "audit.json").read_text())
    assert all(p["passed"] for p in found) and len(found) == (5 if method == "sft" else 8), found
    precision = next(p for p in found if p["name"] == "precision")
    if not torch.cuda.is_available():
        assert precision["tolerance"] == "relative 1e-06"
        assert float(precision["found"].removeprefix("relative difference ")) < referee.TOLERANCE
