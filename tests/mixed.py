"""A method made up for the tests: what a method needs beside its trainer (tests/mixed_trainer.py)."""

from typing import Literal

from scalpel.methods.method import Method
from scalpel.methods.rollout_recipe import RolloutRecipe, rollout_accumulation, rollout_work


class MixedRecipe(RolloutRecipe):
    method: Literal["mixed"] = "mixed"
    held: int = 2  # questions without a right answer that make an update of their own


class Mixed(Method):
    name = "mixed"
    Recipe = MixedRecipe
    samples = True
    trainer = "tests.mixed_trainer"
    work = staticmethod(rollout_work)
    accumulation = staticmethod(rollout_accumulation)
