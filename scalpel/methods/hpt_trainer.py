"""HPT (scalpel/methods/gated_trainer.py): the gate counts right completions."""

from __future__ import annotations

from scalpel.errors import UserError
from scalpel.methods.gated_trainer import SkippingTrainer
from scalpel.methods.mixed import train_mixed


class HPTTrainer(SkippingTrainer):
    def gated(self, group):
        return sum(rollout.rewards["accuracy"] == 1.0 for rollout in group) <= self.recipe.gate


def train(run) -> None:
    """Carry out one run (scalpel/methods/run.py)."""
    if run.recipe.skip_above is not None and run.settings.engine == "zero2":
        raise UserError(
            "`skip_above` looks at the gradient before the optimizer's step, which DeepSpeed takes by itself; "
            "set it to null, or use `engine: fsdp` or `single`."
        )
    train_mixed(run, HPTTrainer)
