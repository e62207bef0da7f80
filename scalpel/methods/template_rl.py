"""TemplateRL: GRPO with problem-solving templates in the prompts (arXiv 2505.15692): declaration.

Its text determines this much: a library of templates, each with the number of conditions of the problems it came from;
for each question the k whose number is nearest to its own, and as many completions after each; GRPO over all of them.
How the library is made (tree search over 500 problems, with actions defined by hand) it does not, so the library is
given; how conditions are counted and how a template is worded into the prompt are options; k is the paper's best, 2.
No public code was found.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalpel.config.types import Recipe, Whole
from scalpel.methods.method import RowSizes, Work
from scalpel.methods.mixed_recipe import Clip, MixedMethod, MixedRecipe, mixed_work


class Template(Recipe):
    text: Annotated[str, Field(min_length=1, max_length=10_000)]
    conditions: Whole  # of the problems it came from


class TemplateRLRecipe(MixedRecipe):
    method: Literal["template_rl"] = "template_rl"
    normaliser: Literal["ranks", "completions", "tokens"] = "tokens"
    epsilon: Clip | None = 0.2
    scale_rewards: Literal["group", "none"] = "group"
    templates: tuple[Template, ...] = ()  # none: plain GRPO
    per_question: Annotated[int, Field(gt=0, le=1000)] = 2  # templates
    conditions: Literal["numbers", "sentences"] = "numbers"  # what is counted in a problem
    prompt: str = "{problem}\n\n{template}"  # the user's turn
    mean_over: Literal["question", "template"] = "question"  # advantages

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.templates and self.generations % min(self.per_question, len(self.templates)):
            raise ValueError("generations must be a multiple of the templates per question")
        if "{problem}" not in self.prompt:
            raise ValueError("prompt must contain {problem}")
        return self


class TemplateRL(MixedMethod):
    name = "template_rl"
    Recipe = TemplateRLRecipe
    trainer = "scalpel.methods.template_rl_trainer"

    @staticmethod
    def work(recipe: TemplateRLRecipe, rows: RowSizes) -> Work:
        """The templates' own tokens are left out."""
        return mixed_work(recipe, rows, recipe.generations, 0)
