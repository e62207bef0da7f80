"""Plans, and finished results of all their steps in the stages' own layout, without running a stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from scalpel.analysis.trace import KINDS, POSITIONS
from scalpel.artifact.files import PROVENANCE, read_json
from scalpel.artifact.manifest import seal
from scalpel.artifact.step import Step, record_recipe
from scalpel.config.load import load, merged
from scalpel.exhibits.results import PROJECTIONS
from scalpel.methods import METHODS
from scalpel.plan import Plan

WORKFLOW = Path(__file__).resolve().parents[1] / "workflow"
STUDY = "scalpel_vs_hammer"
STEPS = {"grpo": 100, "sft_1ep": 35, "sft_3ep": 105, "sft_matched": 100, "sft_grpo_rate_1ep": 35, "sft_own_all": 30}
SCORES = {  # final scores: maths up, knowledge down, and how far for each run
    "base": {"math_500": 0.42, "gsm8k": 0.40, "mmlu": 0.88, "mmlu_pro": 0.70, "ifeval": 0.60},
    "grpo": {"math_500": 0.88, "gsm8k": 0.86, "mmlu": 0.86, "mmlu_pro": 0.68, "ifeval": 0.58},
    "sft_1ep": {"math_500": 0.45, "gsm8k": 0.43, "mmlu": 0.60, "mmlu_pro": 0.45, "ifeval": 0.40},
    "sft_3ep": {"math_500": 0.70, "gsm8k": 0.66, "mmlu": 0.45, "mmlu_pro": 0.30, "ifeval": 0.30},
    "sft_matched": {"math_500": 0.50, "gsm8k": 0.47, "mmlu": 0.55, "mmlu_pro": 0.40, "ifeval": 0.35},
    "sft_grpo_rate_1ep": {"math_500": 0.40, "gsm8k": 0.41, "mmlu": 0.84, "mmlu_pro": 0.66, "ifeval": 0.55},
    "sft_own_all": {"math_500": 0.66, "gsm8k": 0.64, "mmlu": 0.70, "mmlu_pro": 0.55, "ifeval": 0.40},
}
DROPS = (
    "reason,rows,meaning\nother_source,900,not the wanted source\ntoo_long,600,too many <tokens>\n"
    "kept,1500,trained on\nread,3000,all rows\n"
)
CHECKPOINTS = 8  # of each run
# But for runs of which the study says how many.
COUNTS = dict.fromkeys(("sft_own_all", "sft_teacher", "sft_own", "sft_oracle"), 10)
LOGGED = {  # method -> what it logs beside the others
    "relift": ("buffer_size", "hard_rate"),
    "mifo": ("buffer_size", "hard_rate", "frozen_share"),
    "srft": ("sft_weight", "rl_weight"),
    "prefix_rft": ("prefix_share", "hybrid_accuracy"),
    "hpt": ("gate_rate",),
    "superrl": ("gate_rate",),
    "chord": ("mu", "token_weight"),
    "uft": ("hint_probability", "hint_share"),
    "sasr": ("sft_chance",),
    "red": ("entropy_weight", "accuracy_weight"),
}
CONFIG = {"hidden_size": 96, "intermediate_size": 258, "num_hidden_layers": 4, "num_attention_heads": 3,
          "num_key_value_heads": 3, "vocab_size": 576, "tie_word_embeddings": False, "model_type": "olmo2"}  # fmt: skip
PROBES = [
    {"name": "accumulation", "passed": True, "found": "lost: none", "expected": "all 4 of 1", "tolerance": "none"},
    {"name": "log-probabilities of transformers", "passed": True, "found": "as an audit without the other fields"},
]
KEPT = pd.DataFrame({"row": range(1500), "tokens": 90, "prompt_tokens": 30})
Content = dict[str, pd.DataFrame | str]  # file name -> what it holds


# ---------------------------------------------------------------- plans


def workflow_with(folder: Path, study: dict | str, name: str = STUDY) -> Path:
    """A copy of workflow/ below `folder`, with a study of this name; returns it."""
    shutil.copytree(WORKFLOW, folder / "workflow", dirs_exist_ok=True)
    text = study if isinstance(study, str) else yaml.safe_dump(study, sort_keys=False)
    (folder / "workflow" / "studies" / f"{name}.yaml").write_text(text)
    return folder / "workflow"


def study_file() -> dict:
    """The content of workflow/studies/scalpel_vs_hammer.yaml."""
    return yaml.safe_load((WORKFLOW / "studies" / f"{STUDY}.yaml").read_text())


def plan_of(root: Path, raw: dict | None = None, workflow: Path = WORKFLOW) -> Plan:
    """The plan of config.yaml's content `raw`, with CHECKPOINTS of each run."""
    root.mkdir(parents=True, exist_ok=True)
    few = {"overrides": {"methods": {method: {"checkpoints": CHECKPOINTS} for method in METHODS}}}
    return Plan(load(merged(few, raw or {}), workflow), workflow, root)


# ---------------------------------------------------------------- results


def finish(step: Step, root: Path, content: Content) -> Path:
    """Write a step's files, recipe and manifest, after those of its inputs; returns its directory."""
    record_recipe(step, root)
    directory = root / step.directory
    for name, what in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            (directory / name).write_text(what)
        else:
            what.to_parquet(directory / name, index=False)
    inputs = {role: root / other.directory for role, other in step.inputs.items()}
    seal(directory, read_json(directory / "recipe.json"), inputs)
    return directory


def finish_all(plan: Plan, root: Path, edit: Callable[[str, str, pd.DataFrame], pd.DataFrame] | None = None) -> None:
    """Finish every step of a plan. edit(stage, run, frame): what to write in place of a made-up frame."""
    whose = {e.step.digest: e for entries in plan.entries.values() for e in entries}
    for step in plan.steps.values():
        entry = whose.get(step.digest)
        content = made_up(entry.stage, entry.run, entry.seed, step.recipe) if entry else {}
        if step.stage == "audit":
            content = {"audit.json": json.dumps(PROBES)}
        if edit:
            frames = {name: what for name, what in content.items() if isinstance(what, pd.DataFrame)}
            content |= {name: edit(entry.stage, entry.run, frame) for name, frame in frames.items()}
        finish(step, root, content)


def checkpoint_steps(run: str) -> list[int]:
    count = COUNTS.get(run, CHECKPOINTS)
    return [round(STEPS.get(run, 40) * i / count) for i in range(1, count + 1)]


def checkpoints_json(steps: list[int]) -> str:
    return json.dumps([{"index": i, "step": step, "path": f"checkpoints/{step}"} for i, step in enumerate(steps, 1)])


def made_up(stage: str, run: str, seed: int, recipe: dict) -> Content:
    """The files of one result of a made-up laptop run; the same for the same arguments."""
    rng = np.random.default_rng([seed, *stage.encode(), *run.encode()])
    if stage == "train":
        log = _log(run, rng)
        if recipe["method"] != "sft":
            more = {"accuracy_reward": 0.4 + log["step"] / 200, "completion_length": 40.0 + log["step"]}
            log = log.assign(**{name: column for name, column in more.items() if name not in log})
            log = logged(recipe["method"], log, np.random.default_rng(seed))
        steps = checkpoint_steps(run)
        made = {"log.parquet": log, "checkpoints.json": checkpoints_json(steps)}
        made |= {f"checkpoints/{step}/model.safetensors": f"weights of {run} after {step}" for step in steps}
        made |= _sequences(STEPS.get(run, 40), recipe["method"] != "sft", rng)
        made[PROVENANCE] = json.dumps({"step_seconds": [0.5 + step % 3 for step in log["step"]]})
        if "rollouts.parquet" in made:
            made["rollouts.parquet"] = _with_texts(made["rollouts.parquet"], run)
        return made
    if stage == "evaluate":
        wanted = [checkpoint_steps(run)[index - 1] for index in recipe["checkpoints"]] or [0]
        scores = _scores(run, wanted, list(recipe["tasks"]), seed, rng)
        return {"scores.parquet": scores, "samples.parquet": _samples(scores, rng)}
    if stage == "kl":
        return {"kl.parquet": _kl(run, rng)}
    if stage == "generate":
        spent = {"read_tokens": 1000, "written_tokens": 5000, "flops": 1e9}
        return {"drops.csv": DROPS, "kept.parquet": KEPT, "spent.json": json.dumps(spent)}
    if stage == "trace":
        return {"aie.parquet": _aie(rng)}
    if stage == "structure":
        return {"structure.parquet": _structure(run, seed, recipe, rng)}
    if stage == "weight_change":
        return {"weight_change.parquet": _weight_change(run, rng)}
    if stage == "base":
        return {"model/config.json": json.dumps(CONFIG)}
    return {"drops.csv": DROPS, "kept.parquet": KEPT} if stage in ("data", "common") else {}


def _sequences(steps: int, samples: bool, rng) -> Content:
    """What each step asked, its completions where the method writes some, and what the meter saw of some steps."""
    step = np.repeat(np.arange(1, steps + 1), 8)
    row = rng.integers(0, len(KEPT), len(step))
    asked = pd.DataFrame({"step": step, "position": np.arange(len(step)), "row": row, "uuid": "u"})
    sampled = np.unique(np.linspace(1, steps, 4).astype(int))
    spent = pd.DataFrame({"step": sampled, "trained": 3_000_000_000, "scored": 0, "written": 900_000_000 * samples})
    made: Content = {"questions.parquet": asked, "flops.parquet": spent}
    if samples:
        four = asked.loc[asked.index.repeat(4)].reset_index(drop=True)
        lengths = {"prompt_tokens": 30, "completion_length": rng.integers(20, 60, len(four)), "prefix_length": 0}
        made["rollouts.parquet"] = four.assign(origin="own", advantage=0.1, **lengths)
    return made


def logged(method: str, log: pd.DataFrame, rng) -> pd.DataFrame:
    """The columns that a method logs of its own; MIFO's only at steps with an SFT update."""
    some = np.where(log["step"] % 10 == 0, 0.5, np.nan) if method == "mifo" else None
    made = {name: rng.random(len(log)) if name != "frozen_share" else some for name in LOGGED.get(method, ())}
    shared = {"expert_share": rng.random(len(log))} if method in LOGGED or method == "luffy" else {}
    return log.assign(**shared, **made)


def _log(run: str, rng) -> pd.DataFrame:
    steps = np.arange(1, STEPS.get(run, 40) + 1)
    rise, n = 1 - np.exp(-steps / 25), len(steps)
    log = {"step": steps, "learning_rate": 1e-4, "entropy": 0.5, "questions": 8, "flops": 1e9 * steps}
    if run.startswith("grpo"):
        log |= {"tag_count_reward": rise, "completion_length": 40 + 20 * rise} if run == "grpo_tags" else {}
        log |= {"completion_length": 40 + 5 * rise} if run in ("grpo_kl", "grpo_raised") else {}
        log |= {
            "tokens": 3000.0, "written": 1500.0,
            "loss": rng.normal(0, 0.01, n), "grad_norm": rng.gamma(4, 0.05, n),
            "accuracy_reward": np.clip(0.4 + 0.5 * rise + rng.normal(0, 0.05, n), 0, 1),
            "format_reward": np.clip(0.6 + 0.4 * rise + rng.normal(0, 0.03, n), 0, 1),
        }  # fmt: skip
    else:
        log |= {
            "tokens": rng.integers(2000, 4000, n).astype(float), "written": 0.0,
            "loss": 0.4 + 1.6 * (1 - rise) + rng.normal(0, 0.03, n),
            "grad_norm": 0.4 + 3 * (1 - rise) + rng.gamma(2, 0.05, n),
        }  # fmt: skip
    return pd.DataFrame(log)


def _with_texts(rollouts: pd.DataFrame, run: str) -> pd.DataFrame:
    """Every second completion is right; of one run, the wrong ones end in tags."""
    tags = "\n</answer>" * 3 if run == "grpo_tags" else ""
    right = np.arange(len(rollouts)) % 2
    texts = [f"<think>\n{step}{tags * (1 - ok)}" for step, ok in zip(rollouts["step"], right, strict=True)]
    return rollouts.assign(prompt="How many?", completion=texts, accuracy_reward=right.astype(float), format_reward=0.0)


def _aie(rng) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"kind": kind, "position": position, "layer": layer, "aie": (value := rng.random() / 5), "stderr": 0.01,
             "low": value - 0.02, "high": value + 0.02, "facts": 20}
            for kind in KINDS for position in POSITIONS for layer in range(4)
        ]
    )  # fmt: skip


def _scores(run: str, steps: list[int], tasks: list[str], seed: int, rng) -> pd.DataFrame:
    rows = []
    luck = rng.normal(0, 0.03) if seed not in (0, 42) else 0.0
    for step in steps:
        share = step / STEPS.get(run, 40)
        for task in tasks:
            start = SCORES["base"].get(task, 0.5)
            goal = SCORES.get(run, {}).get(task, 0.6)
            value = float(np.clip(start + (goal - start) * share**0.5 + luck, 0, 1))
            error = (value * (1 - value) / 64) ** 0.5
            metrics = ["acc", "another"]
            if task == "ifeval":
                metrics = ["prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc"]
            rows += [(step, task, m, value + 0.05 * ("inst" in m), error, 64, 64) for m in metrics]
    columns = ["step", "task", "metric", "value", "stderr", "questions", "samples"]
    return pd.DataFrame(rows, columns=columns)


def _samples(scores: pd.DataFrame, rng) -> pd.DataFrame:
    """Two answers to every question, right with the score as their probability."""
    rows = []
    for step, task, metric, value, questions in scores[["step", "task", "metric", "value", "questions"]].values:
        right = rng.random((int(questions), 2)) < value
        rows += [
            (int(step), task, metric, question, sample, float(right[question, sample]))
            for question in range(int(questions))
            for sample in range(2)
        ]
    frame = pd.DataFrame(rows, columns=["step", "task", "metric", "question", "sample", "score"])
    of_words = ~frame["task"].isin(["mmlu", "mmlu_pro"])  # the others by likelihoods
    said = [f"<think>step {s} & {q}</think>" for s, q in zip(frame["step"], frame["question"], strict=True)]
    asked = "What is <it>? " + frame["question"].astype(str)
    subject = "mmlu:" + (frame["question"] % 3 + frame["question"] % 2).astype(str)  # of unlike sizes
    group = frame["task"].where(frame["task"] != "mmlu", subject)
    return frame.assign(group=group, prompt=asked, gold="7", completion=pd.Series(said).where(of_words, None))


def _kl(run: str, rng) -> pd.DataFrame:
    steps = checkpoint_steps(run)
    height, speed = (0.08, 1.5) if run == "grpo" else (1.2, 8)
    level = height * (1 - np.exp(-speed * np.array(steps) / steps[-1])) * rng.uniform(0.9, 1.1)
    step, question = np.repeat(steps, 30), np.tile(np.arange(30), len(steps))
    kl = np.repeat(level, 30) * rng.uniform(0.7, 1.3, len(step))
    return pd.DataFrame(
        {"step": step, "question": question, "positions": 100, "solution_positions": 60, "kl": kl,
         "kl_solution": 0.7 * kl * rng.uniform(0.9, 1.1, len(step))}
    )  # fmt: skip


def _weight_change(run: str, rng) -> pd.DataFrame:
    rows = []
    for step in checkpoint_steps(run):
        for layer in range(4):
            for p, projection in enumerate(PROJECTIONS):
                middle = 1.3 if layer in (1, 2) and p > 3 else 1.0
                size = (0.0015 if run == "grpo" else 0.008) * (step / STEPS.get(run, 40)) ** 0.6 * middle
                size *= (1.2 if p < 2 else 1.0) * rng.uniform(0.95, 1.05)
                rows.append((step, layer, projection, size * 10, 10.0, size))
    return pd.DataFrame(rows, columns=["step", "layer", "projection", "change_norm", "base_norm", "relative"])


def _structure(run: str, seed: int, recipe: dict, rng) -> pd.DataFrame:
    """Four layers; a seed other than 42 is compared with the first."""
    rows = []
    steps = checkpoint_steps(run)
    for step in (steps[index - 1] for index in recipe["checkpoints"]):
        share = step / steps[-1]
        for layer in range(4):
            for projection in PROJECTIONS:
                moved = (0.3 if run == "grpo" else 0.9) * share * rng.uniform(0.9, 1.0)
                row = {"step": step, "layer": layer, "projection": projection, "entries": 4096, "full_rank": 64}
                row |= {"unchanged": 0.01, "unchanged_bf16": 1 - moved, "stable_rank": 5 + rng.random()}
                row |= {"energy_rank": 50, "spectral_drift": 0.02 * moved, "angle_left": 9 * moved}
                row["angle_right"] = 8 * moved
                both = None if seed == 42 else moved**2 * 1.1
                mine, theirs = (None, None) if seed == 42 else (moved, 0.8 * moved)
                for suffix in ("", "_bf16"):
                    row |= {f"changed{suffix}": mine, f"other_changed{suffix}": theirs, f"both_changed{suffix}": both}
                rows.append(row)
    frame = pd.DataFrame(rows)
    shares = [name for name in frame if "changed" in name and not name.startswith("un")]
    return frame.astype(dict.fromkeys(shares, float))
