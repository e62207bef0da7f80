"""A model card of one checkpoint, in the hub's form: what it is, how it was made, of what, how well it does.

Written on demand and never into a result: a finished result holds what its manifest lists. All is read from the plan
and from finished results. The form: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from scalpel.artifact.checking import checked_folder
from scalpel.artifact.files import PROVENANCE, read_json
from scalpel.artifact.step import Step
from scalpel.checkpoints import Checkpoint, checkpoints
from scalpel.errors import UserError
from scalpel.exhibits.results import Results, task_name, task_order
from scalpel.plan import Plan
from scalpel.plan.model import Run
from scalpel.plan.origin import Origin, of_model, of_questions

LIBRARY = "transformers"
MADE_OF = ("toy", "data", "generate", "common", "order", "train")  # stages that are told as its data


class Shared(NamedTuple):
    """One checkpoint of a finished run."""

    plan: Plan
    run: Run
    checkpoint: Checkpoint


def shared(plan: Plan, run: Run, step: int | None = None) -> Shared:
    """The checkpoint of a run after so many optimizer steps (None: the last), its files hashed against the manifest.

    UserError when the run is not finished or has no such checkpoint.
    """
    made = run.checkpoints
    if not made.finished(plan.root):
        raise UserError(
            f"{made.directory} is not finished; make it by: .venv/bin/snakemake --cores 2 {made.manifest} "
            f"--config scale={plan.config.scale_name}"
        )
    there = {item.step: item for item in checkpoints(plan.root / made.directory)}
    if step is None:
        step = max(there)
    if step not in there:
        raise UserError(
            f"{made.directory} has no checkpoint after step {step}, but {', '.join(map(str, sorted(there)))}."
        )
    checked_folder(there[step].path)
    return Shared(plan, run, there[step])


def card(what: Shared) -> str:
    """The text of README.md."""
    licence = licence_of(what)
    parts = [f"---\n{yaml.safe_dump(metadata(what), sort_keys=False, allow_unicode=True)}---\n", _opening(what)]
    parts.append(
        f"**Licence.** The base model's: `{licence}`."
        if licence
        else "**Licence.** That of the base model, which was not recorded here: look at the model it was made from."
    )
    parts += [f"## Training\n\n{_training(what)}", f"## Data\n\n{_data(what)}", f"## Scores\n\n{_scores(what)}"]
    parts.append(f"## Made by\n\n{_made_by(what)}")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def metadata(what: Shared) -> dict[str, Any]:
    """The YAML block at the head of the card."""
    recipe, repo = what.run.spec.recipe, _hub_of(what.run.base)
    tags = ["scalpel", *([recipe.method] if recipe else [])]
    found: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": "text-generation", "tags": tags}
    licence = licence_of(what)
    found |= {"license": licence} if licence else {}
    found |= {"base_model": repo["repo"], "base_model_relation": "finetune"} if repo else {}
    datasets = [step.recipe["repo"] for step in _behind(what.run.checkpoints) if _is_hub_dataset(step)]
    return found | ({"datasets": sorted(set(datasets))} if datasets else {})


def licence_of(what: Shared) -> str | None:
    """The licence of the base model as the hub calls it, where config or scale say one (`models.<name>.license`)."""
    models = what.plan.config.scale.models
    model = models.get(what.run.base.name)
    return model.license if model else None


# ---------------------------------------------------------------- parts


def _opening(what: Shared) -> str:
    run, made = what.run, what.run.checkpoints
    repo, origin = _hub_of(run.base), of_model(run.base)
    base = f"[{repo['repo']}](https://huggingface.co/{repo['repo']}) at `{repo['revision']}`" if repo else origin.what
    about = f"{' '.join(what.plan.config.scale.description.split())}\n\n" if origin.toy else ""  # the scale's own toy
    identity = f"{made.name}-{made.digest}"
    return (
        f"# {run.name}\n\nRun `{run.name}` of study `{run.study}` (seed {run.seed}) at scale "
        f"`{what.plan.config.scale_name}`: the checkpoint after {what.checkpoint.step} optimizer steps, made from "
        f"{base}.\n\n{about}Its identity is `{identity}`: the digest of recipe, inputs and stage version."
    )


def _training(what: Shared) -> str:
    spec = what.run.spec
    if spec.recipe is None:
        return "These checkpoints were made elsewhere and given to the study; how is not recorded here."
    axes = {"start_from": spec.start_from, "data_from": spec.data_from, "layers_from": spec.layers_from}
    lines = {name: value for name, value in axes.items() if value} | spec.recipe.model_dump(mode="json")
    text = yaml.safe_dump(lines, sort_keys=False, allow_unicode=True)
    return f"The whole recipe:\n\n```yaml\n{text}```"


def _data(what: Shared) -> str:
    lines = []
    for step in _behind(what.run.checkpoints):
        if _is_hub_dataset(step):
            lines.append(f"- `{step.recipe['repo']}` at `{step.recipe['revision']}`")
        elif step.stage in MADE_OF and step is not what.run.checkpoints:
            lines.append(f"- {step.stage} `{step.name}-{step.digest}`")
    return "\n".join(dict.fromkeys(lines)) or "Not recorded here."


def _scores(what: Shared) -> str:
    plan, run = what.plan, what.run
    mine = [
        entry.record() for entry in plan.entries[run.study]
        if entry.stage == "evaluate" and (entry.run, entry.seed) == (run.name, run.seed)
        and entry.step.finished(plan.root)
    ]  # fmt: skip
    if not mine:
        return "This checkpoint was not evaluated."
    frame = Results.of_entries(mine, plan.root / "results").scores()
    frame = frame[frame["step"] == what.checkpoint.step]
    if frame.empty:
        return "This checkpoint was not evaluated; others of the run were."
    rows = {row["task"]: row for row in frame.to_dict("records")}
    origins = _question_sets(what)
    lines = []
    for task in task_order(rows):
        row, origin = rows[task], _of_task(origins, task)
        score = f"{100 * row['value']:.1f} ± {100 * row['stderr']:.1f}"
        said = origin.what.replace("|", "\\|") if origin else "not recorded"
        lines.append(f"| {task_name(task)} | {score} | {row['questions']} | {said} |")
    head = ["| benchmark | score in percent, one standard error | questions | question set |", "|---|---:|---:|---|"]
    toys = [task_name(task) for task in task_order(rows) if (of := _of_task(origins, task)) and of.toy]
    note = (
        f"\n\nThe questions of {', '.join(toys)} are generated, in the format of the public sets whose names they "
        "bear; these are no scores on the public sets."
        if toys
        else ""
    )
    return "\n".join([*head, *lines]) + note


def _question_sets(what: Shared) -> dict[str, Origin]:
    """Of each task of the study's benchmarks, what its questions are."""
    roles = (
        (role.partition("/")[2], step)
        for entry in what.plan.entries[what.run.study]
        if entry.stage == "evaluate" and (entry.run, entry.seed) == (what.run.name, what.run.seed)
        for role, step in entry.step.inputs.items()
        if role.startswith("questions/")
    )
    return {task: of_questions(step) for task, step in roles}


def _of_task(origins: dict[str, Origin], task: str) -> Origin | None:
    """Of a task, or of the task whose headline scores have names of their own (IFEval: prompts, instructions)."""
    return origins.get(task) or origins.get(task.rpartition("_")[0])


def _made_by(what: Shared) -> str:
    path = what.plan.root / what.run.checkpoints.directory / PROVENANCE
    try:
        made = read_json(path) if path.is_file() else {}
    except UserError:
        raise UserError(f"{path} is damaged; delete it, and the card leaves out what made the run.") from None
    packages = ", ".join(f"{name} {version}" for name, version in made.get("packages", {}).items())
    commit = f" at commit `{made['commit']}`" if made.get("commit") else ""
    return f"Scalpel{commit}" + (f" with {packages}." if packages else ".")


def _behind(step: Step) -> list[Step]:
    """All results that a result is made of, each once; but the benchmarks that its rows may not overlap with."""
    found: dict[str, Step] = {}
    todo = [step]
    while todo:
        at = todo.pop(0)
        if at.digest not in found:
            found[at.digest] = at
            todo += [other for other in at.inputs.values() if other.stage != "questions"]
    return list(found.values())


def _hub_of(base: Step) -> dict | None:
    """Repository and revision of a base model that was fetched."""
    return base.inputs["fetch"].recipe if "fetch" in base.inputs else None


def _is_hub_dataset(step: Step) -> bool:
    return step.stage == "fetch" and step.recipe["type"] == "dataset"
