"""What cannot run, told when a run is planned: each refusal names the field and says what to give or to take away.

Whatever a stage would trip over hours later and that can be known before is asked here: of the configuration, of the
first rows of the user's files, and of the sizes that follow from both. Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalpel.config.evaluation import FileQuestions, ToyQuestions
from scalpel.config.models import TOY_EXAMPLES
from scalpel.config.scale import Setting
from scalpel.config.study import RunSpec
from scalpel.cost.shape import positions_of, shape_of
from scalpel.errors import UserError
from scalpel.evaluation.tasks import WITH_SOLUTIONS, check_task
from scalpel.methods import METHODS
from scalpel.methods.tracking import check_tracking
from scalpel.plan import Plan
from scalpel.plan.model import Run
from scalpel.plan.sizes import refuse_what_is_too_large


def refuse_what_cannot_run(plan: Plan) -> None:
    """UserError for the first thing in the plan that would end in an error."""
    for config in plan.config.studies.values():
        setting, used = config.setting, {}
        for name, task in setting.evaluation.tasks.items():
            way_out = f" Or remove the task: `overrides: {{evaluation: {{tasks: {{{name}: null}}}}}}`."
            used[task.questions or name] = way_out
            try:
                check_task(name, task, _format(plan, task.questions or name), _examples(plan, task.questions or name))
            except UserError as error:
                raise UserError(f"{error}{way_out}") from None
        for name, measure in setting.kl.items():
            form = _format(plan, measure.questions or name)
            way_out = f" Or remove the measure: `overrides: {{kl: {{{name}: null}}}}`."
            used.setdefault(measure.questions or name, way_out)
            if form not in WITH_SOLUTIONS:
                raise UserError(
                    f"kl.{name}: KL reads problems and solutions, its question set has the format {form}; name a set "
                    f"of format math in `questions`.{way_out}"
                )
        for name, way_out in used.items():
            _check_files(plan, name, way_out)
    _check_exhibits(plan)
    for name in dict.fromkeys(step.name for step in plan.steps.values() if step.stage == "data"):
        _check_dataset(plan, name)
    for check in (_check_caps, _check_run):
        for study, config in plan.config.studies.items():
            for name, spec in config.runs.items():
                if spec.recipe is not None:
                    try:
                        check(plan, config.setting, spec, plan.run(study, name, spec.seeds[0]))
                    except UserError as error:
                        raise UserError(f"study {study}, run {name!r}: {error}") from None
    refuse_what_is_too_large(plan)


# ---------------------------------------------------------------- question sets and rows


def _check_exhibits(plan: Plan) -> None:
    """Exhibits of gain and loss need a benchmark of each."""
    for study, config in plan.config.studies.items():
        tasks = config.setting.evaluation.tasks
        if any(_format(plan, task.questions or name) == "lm_eval" for name, task in tasks.items()):
            continue  # which may be groups of tasks
        asked = set(tasks)
        for name, task in tasks.items():
            if _format(plan, task.questions or name) == "ifeval":
                asked |= {f"{name}_prompt", f"{name}_instruction"}
        for (owner, name), drawing in plan.drawings.items():
            options = drawing.recipe.get("options", {})
            if owner != study or not {"gain", "kept"} <= set(options) or any("/" in e.run for e in drawing.entries):
                continue
            for field in ("gain", "kept"):
                if not asked & set(options[field]):
                    raise UserError(
                        f"study {study}: exhibits.{name}: {field} names none of the tasks asked, which are "
                        f"{', '.join(tasks)}; name some in a study of your own (`extends: {study}`, "
                        f"`exhibits: {{{name}: {{{field}: [...]}}}}`), or take the exhibit away there "
                        f"(`{name}: null`)."
                    )


def _format(plan: Plan, questions: str) -> str:
    return plan.materials.questions(questions).recipe["format"]


def _examples(plan: Plan, name: str) -> int | None:
    """Few-shot examples of a set, of each subject where it has subjects; None when that is not known."""
    source = plan.config.scale.questions[name]
    if isinstance(source, ToyQuestions):
        return TOY_EXAMPLES.get(name, 0)
    if not isinstance(source, FileQuestions):
        return None
    if source.examples is None:
        return None if _format(plan, name) == "mmlu_pro" else 0  # its first questions are set aside
    return None


def _check_files(plan: Plan, name: str, way_out: str) -> None:
    """The first row of each local file of a set must be what its format needs."""
    source = plan.config.scale.questions[name]
    if not isinstance(source, FileQuestions):
        return
    files = [path for path in (source.file, source.examples) if isinstance(path, Path)]
    if not files:
        return
    from scalpel.data.tables import first_row
    from scalpel.evaluation.formats import checked_rows

    for path in files:
        try:
            checked_rows(_format(plan, name), first_row(path), source.columns, str(path))
        except UserError as error:
            raise UserError(f"questions.{name}: {error}{way_out}") from None


def _check_dataset(plan: Plan, name: str) -> None:
    dataset = plan.config.scale.datasets[name]
    source = dataset.source
    if source.kind == "parquet":
        from scalpel.data.sources import open_rows

        try:
            open_rows([source.path], source.columns, source.constants, source.boxed_answer_of, dataset.filter.columns)
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None


# ---------------------------------------------------------------- runs


def _check_caps(plan: Plan, setting: Setting, spec: RunSpec, run: Run) -> None:
    """A run must hold every row that the filter lets through."""
    recipe: Any
    dataset, recipe = spec.dataset or setting.dataset, spec.recipe
    most = plan.config.scale.datasets[dataset].filter.max_tokens
    if most and getattr(recipe, "max_tokens", most) < most:
        raise UserError(
            f"datasets.{dataset}.filter.max_tokens lets rows of {most} tokens through, the run's max_tokens is "
            f"{recipe.max_tokens}; make them agree (methods.{recipe.method}.max_tokens is that of all such runs)."
        )


def _check_run(plan: Plan, setting: Setting, spec: RunSpec, run: Run) -> None:
    check_tracking(setting.train_settings.tracking)
    assert spec.recipe is not None
    METHODS[spec.recipe.method].check(spec.recipe, setting.train_settings.of(spec.recipe.method))
    _check_layers(plan, run)
    _check_supply(plan, setting, run)
    _check_positions(plan, setting, run)


def _check_layers(plan: Plan, run: Run) -> None:
    try:
        shape, _ = shape_of(run.base, plan.root)
    except UserError:
        return  # a model that is not fetched yet
    assert run.spec.recipe is not None
    beyond = [layer for layer in run.spec.recipe.trainable.freeze_mlp_layers if layer >= shape.layers]
    if beyond:
        raise UserError(
            f"trainable.freeze_mlp_layers names layer {beyond[0]}; the model has layers 0 to {shape.layers - 1}."
        )


def _check_supply(plan: Plan, setting: Setting, run: Run) -> None:
    """The question order must feed the run's steps and checkpoints, as far as its rows are known."""
    from scalpel.cost.estimate import kept_rows

    recipe: Any
    recipe, data = run.spec.recipe, run.checkpoints.inputs["data"]
    if (getattr(recipe, "epochs", None) or 0) > setting.epochs:
        raise UserError(
            f"it takes {recipe.epochs} epochs, the question order holds {setting.epochs}; raise the scale's `epochs`, "
            "or lower the run's."
        )
    while data.stage != "data":
        data = data.inputs.get("data") or data.inputs["own"]
    if "fetch" in data.inputs and not data.finished(plan.root):
        return
    rows = kept_rows(data, plan.root).sizes.count
    fed = METHODS[recipe.method].steps_fed(recipe, rows, setting.epochs)
    fed = rows * setting.epochs if fed is None else fed  # no step asks less than one row
    if fed < (recipe.steps or recipe.checkpoints):
        wanted = f"{recipe.steps} steps" if recipe.steps else f"{recipe.checkpoints} checkpoints"
        raise UserError(
            f"{rows} rows at most, {setting.epochs} times at most, feed {fed} steps, too few for its {wanted}; give "
            "more rows, raise the scale's `epochs`, or lower the run's `steps`, `checkpoints` or questions a step."
        )


def _check_positions(plan: Plan, setting: Setting, run: Run) -> None:
    """Prompts and completions must fit the model's positions."""
    dataset = run.spec.dataset or setting.dataset
    rows, room = plan.config.scale.datasets[dataset].filter, positions_of(run.base, plan.root)
    caps = (rows.max_prompt_tokens, rows.max_tokens, getattr(run.spec.recipe, "max_prompt_tokens", None))
    longest = min((cap for cap in caps if cap), default=None)
    written = getattr(run.spec.recipe, "max_completion_tokens", None)
    if room and written and longest and longest + written > room:
        advice = f"set datasets.{dataset}.filter.max_prompt_tokens to {room - written} or less"
        if written >= room:
            advice = "lower max_completion_tokens"
        raise UserError(
            f"a prompt of up to {longest} tokens and {written} completion tokens exceed the model's {room} positions; "
            f"{advice}."
        )
