"""Training methods. Each is two files: a declaration that a configuration reads, and a trainer (<name>_trainer.py)."""

from typing import Annotated, Union

from pydantic import Field

from scalpel.methods.grpo import GRPO
from scalpel.methods.method import Method
from scalpel.methods.sft import SFT

METHODS: dict[str, type[Method]] = {method.name: method for method in (SFT, GRPO)}

AnyRecipe = Annotated[Union[tuple(method.Recipe for method in METHODS.values())], Field(discriminator="method")]  # noqa: UP007
