"""Training methods. Each is two files: a declaration that a configuration reads, and a trainer (<name>_trainer.py)."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from scalpel.methods.chord import CHORD
from scalpel.methods.grpo import GRPO
from scalpel.methods.hpt import HPT
from scalpel.methods.luffy import LUFFY
from scalpel.methods.method import Method
from scalpel.methods.mifo import MIFO
from scalpel.methods.prefix_rft import PrefixRFT
from scalpel.methods.red import RED
from scalpel.methods.relift import ReLIFT
from scalpel.methods.sasr import SASR
from scalpel.methods.sft import SFT
from scalpel.methods.srft import SRFT
from scalpel.methods.superrl import SuperRL
from scalpel.methods.template_rl import TemplateRL
from scalpel.methods.uft import UFT

ALL = (SFT, GRPO, LUFFY, ReLIFT, SRFT, PrefixRFT, HPT, CHORD, SuperRL, UFT, MIFO, SASR, RED, TemplateRL)
METHODS: dict[str, type[Method]] = {method.name: method for method in ALL}

if TYPE_CHECKING:
    from scalpel.config.training import MethodRecipe

    AnyRecipe = MethodRecipe
else:
    AnyRecipe = Annotated[Union[tuple(method.Recipe for method in METHODS.values())], Field(discriminator="method")]  # noqa: UP007
