"""What a run's libraries are told: python -m scripts.show RUN [--scale cluster]

Prints the run's recipe and the arguments of TRL, accelerate, DeepSpeed and vLLM as a node of that scale builds them,
from the very functions that training calls. Nothing is written, fetched or trained.
"""

import argparse
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path

import yaml

from scalpel.config.load import nearest
from scalpel.config.training import TrainSettings
from scalpel.cost.estimate import kept_rows
from scalpel.errors import UserError
from scalpel.methods import METHODS
from scalpel.plan import Plan
from scalpel.plan.model import Run
from scalpel.program import WORKFLOW, configured, end_with

UNSAID = {"output_dir", "logging_dir", "run_name", "project"}  # places


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.show", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run, or <study>/<run>")
    parser.add_argument("--scale", help="a scale of workflow/scales; default: config.yaml's")
    options = parser.parse_args()
    plan = Plan(configured(options.scale), WORKFLOW)
    study, name = find(plan, options.run)
    parts = shown(plan, plan.run(study, name, plan.config.studies[study].runs[name].seeds[0]))
    for title, content in parts.items():
        print(f"# {title}")
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110) if content else "(none)\n")
    return 0


def find(plan: Plan, wanted: str) -> tuple[str, str]:
    """(study, run) of a run's name; UserError with the nearest name when there is none."""
    owner, _, name = wanted.rpartition("/")
    studies = {study: config.runs for study, config in plan.config.studies.items() if owner in ("", study)}
    for study, runs in studies.items():
        if name in runs:
            return study, name
    raise UserError(f"no run is named {wanted!r}{nearest(name, [run for runs in studies.values() for run in runs])}.")


def shown(plan: Plan, run: Run) -> dict[str, dict]:
    """Title -> what is told, in plain values."""
    recipe, scale = run.spec.recipe, plan.config.scale
    if recipe is None:
        raise UserError(f"{run.name} is a given run: nothing is trained.")
    step = run.checkpoints
    settings = plan.config.studies[run.study].setting.train_settings.of(recipe.method)
    gpu = bool(scale.resources.get("train") and scale.resources["train"].gpus)
    inputs = {role: other.directory for role, other in step.inputs.items()}
    parts = {f"{run.study}/{run.name}, seed {run.seed}: recipe": recipe.model_dump(mode="json")}
    parts["made from"] = inputs
    steps, why = length(plan, run)
    parts |= libraries(run, settings, steps, gpu)
    if why:
        parts["max_steps"] = {"assumes": why}
    return parts


def length(plan: Plan, run: Run) -> tuple[int, str]:
    """Optimizer steps of a run, and what that assumes where the rows are not known yet."""
    recipe, data = run.spec.recipe, run.checkpoints.inputs["data"]
    if recipe.steps:
        return recipe.steps, ""
    while data.stage != "data" and not data.finished(plan.root):
        data = data.inputs.get("data") or data.inputs["own"]
    rows = kept_rows(data, plan.root)
    steps = METHODS[recipe.method].steps_fed(recipe, rows.sizes.count, recipe.epochs)
    if steps is None:  # it counts tokens
        steps = round(
            rows.sizes.count * recipe.epochs * (rows.sizes.tokens or recipe.max_tokens / 2) / recipe.tokens_per_step
        )
    return steps, f"{rows.sizes.count} rows ({rows.source})"


def libraries(run: Run, settings: TrainSettings, steps: int, gpu: bool) -> dict[str, dict]:
    """Arguments of each library, as its own classes hold them."""
    from scalpel.methods.loop import TrainingRun, engine_environment

    recipe, here = run.spec.recipe, Path(".")
    training = TrainingRun(recipe, here, here, here, here, run.seed, recipe.trainable, here, settings)
    kind, wanted = import_module(METHODS[recipe.method].trainer).trl_config(training, steps, gpu)
    ranks = settings.ranks * settings.nodes
    # A machine without a GPU refuses a GPU's arguments: the class is built for the CPU, and `use_cpu` is said as it is.
    built = type(kind.__name__, (kind,), {"world_size": property(lambda _: ranks)})(**wanted | {"use_cpu": True})
    told = {name: plain(getattr(built, name)) for name in wanted if name not in UNSAID} | {"use_cpu": not gpu}
    parts = {f"TRL: {kind.__name__}": told}
    if told.pop("deepspeed", None):
        parts["DeepSpeed"] = plain(built.hf_deepspeed_config.config)
    parts["accelerate: environment of each rank"] = engine_environment(settings) | {
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": settings.ranks,
    }
    if METHODS[recipe.method].samples and recipe.inference == "vllm":
        from scalpel.inference import VLLM_ENVIRONMENT
        from scalpel.inference.vllm_engine import llm_arguments, sampling_arguments

        fraction = settings.server.memory_fraction if settings.server else 0.9
        model = f"{run.base.directory}/model"
        parts["vLLM: environment"] = VLLM_ENVIRONMENT
        parts["vLLM: LLM"] = llm_arguments(model, recipe.dtype, fraction, gpu)
        parts["vLLM: SamplingParams"] = sampling_arguments(recipe.temperature, recipe.top_p, recipe.top_k) | {
            "max_tokens": recipe.max_completion_tokens
        }
    return parts


def plain(value):
    """A value as YAML can say it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))) and type(value).__module__ == "builtins":
        return value
    return getattr(value, "value", None) or str(value)


if __name__ == "__main__":
    end_with(main)
