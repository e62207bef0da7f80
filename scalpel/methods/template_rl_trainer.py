"""TemplateRL. Each question is asked once with each of its k nearest templates; its completions are learnt from under
the prompt they were written to."""

from __future__ import annotations

import re

from scalpel.chat import token_ids
from scalpel.methods.mixed import MixedTrainer, entries
from scalpel.methods.rollouts import Ask, Rollout
from scalpel.methods.template_rl import Template, TemplateRLRecipe

COUNTED = {"numbers": r"\d+(?:[.,]\d+)*", "sentences": r"[^.!?]+[.!?]"}


class TemplateRLTrainer(MixedTrainer):
    columns = MixedTrainer.columns | {"template/distance": "template_distance", "template/tokens": "template_tokens"}
    recipe: TemplateRLRecipe

    def conditions(self, row: int) -> int:
        return len(re.findall(COUNTED[self.recipe.conditions], self.rows[row]["problem"]))

    def nearest(self, row: int) -> list[Template]:
        """A question's templates; of equally near ones those that stand first."""
        of, recipe = self.conditions(row), self.recipe
        return sorted(recipe.templates, key=lambda t: abs(t.conditions - of))[: recipe.per_question]

    def guided(self, row: int, template: Template) -> list[int]:
        """Token ids of the prompt with a template."""
        parts = {"problem": self.rows[row]["problem"], "template": template.text}
        return token_ids(self.processing_class, self.recipe.prompt.format(**parts))

    def write(self, batch: list[tuple[int, int]]) -> list[list[Rollout]]:
        if not self.recipe.templates:
            return super().write(batch)
        groups = []
        for position, row in batch:
            templates = self.nearest(row)
            share = self.recipe.generations // len(templates)
            groups.append([Ask(position, row, share, [], self.guided(row, t), (n,)) for n, t in enumerate(templates)])
        found = iter(self.own([ask for asks in groups for ask in asks]))
        joined = [[rollout for _ in asks for rollout in next(found)] for asks in groups]
        for group in joined:
            for sample, rollout in enumerate(group):
                rollout.sample = sample
        return joined

    def credit(self, groups: list[list[Rollout]]) -> None:
        """Over all completions of a question, or over those of each of its templates."""
        if self.recipe.mean_over == "question" or not self.recipe.templates:
            return super().credit(groups)
        size = self.recipe.generations // min(self.recipe.per_question, len(self.recipe.templates))
        super().credit([group[i : i + size] for group in groups for i in range(0, len(group), size)])

    def metrics(self, groups: list[list[Rollout]]) -> dict[str, float]:
        found = super().metrics(groups)
        if not self.recipe.templates:
            return found
        rows = [group[0].row for group in groups]
        away = [abs(t.conditions - self.conditions(row)) for row in rows for t in self.nearest(row)]
        more = [len(r.prompt) - len(self.prompt(r.row)) for group in groups for r in group]
        return found | {"template/distance": sum(away) / len(away), "template/tokens": sum(more) / len(more)}


train, trl_config, parts = entries(TemplateRLTrainer)
