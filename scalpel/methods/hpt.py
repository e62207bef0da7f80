"""HPT: demonstrations where few completions are right, GRPO elsewhere (arXiv 2509.04419): declaration.

Defaults: exp_scripts/train.sh (Qwen; train_llama.sh: gate 2) of TsinghuaC3I/Unify-Post-Training at ae332f5. That script
leaves out steps whose gradient norm before clipping is above 80: `skip_above`, at its normaliser.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalpel.config.training import TrainSettings
from scalpel.config.types import Rate
from scalpel.errors import UserError
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import MixedMethod, MixedRecipe, Weight, mixed_work


class HPTRecipe(MixedRecipe):
    method: Literal["hpt"] = "hpt"
    learning_rate: Rate = 5e-6
    gate: Annotated[int, Field(ge=-1, le=10**5)] = 0  # with so many right completions at most, the trace; -1: never
    sft_weight: Weight = 1.0
    skip_above: Annotated[float, Field(gt=0)] | None = 80.0


class HPT(MixedMethod):
    name = "hpt"
    Recipe = HPTRecipe
    trainer = "scalpel.methods.hpt_trainer"

    @staticmethod
    def work(recipe: HPTRecipe, rows: RowSizes) -> Work:
        """As if no question were gated: an upper bound."""
        return mixed_work(recipe, rows, recipe.generations, 0)

    @staticmethod
    def check(recipe: HPTRecipe, settings: TrainSettings) -> None:
        MixedMethod.check(recipe, settings)
        if recipe.skip_above is not None and settings.engine == "zero2":
            raise UserError(
                "`skip_above` looks at the gradient before the optimizer's step, which DeepSpeed takes by itself; "
                "set it to null, or use `engine: fsdp` or `single`."
            )
