"""One expert trace in each group, off-policy tokens weighed by f(p) = p / (p + 0.1), and a buffer of the questions that
nobody answered, on whose traces a second optimizer takes a step."""

import json

import torch

from scalpel.methods.rollouts import EXPERT, Ask, Parts, RolloutTrainer, train_rollouts
from scalpel.methods.second_optimizer import SecondOptimizer


class MixedTrainer(RolloutTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.buffer, self.second_steps = [], 0
        self.second = SecondOptimizer(self, self.recipe.learning_rate, 0.0, 1.0)

    def write(self, batch):
        groups = self.own([Ask(position, row, self.recipe.generations - 1) for position, row in batch])
        for (position, row), group in zip(batch, groups, strict=True):
            group.append(self.expert(position, row, len(group)))
        return groups

    def credit(self, groups):
        super().credit(groups)
        self.buffer += [g[0].row for g in groups if not any(r.rewards["accuracy"] for r in g if r.origin != EXPERT)]

    def tensors(self, rollouts):
        device = self.accelerator.device
        return super().tensors(rollouts) | {
            "expert": torch.tensor([r.origin == EXPERT for r in rollouts], device=device)
        }

    def loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, inputs["completion_ids"].shape[1], compute_entropy=True
        )
        self.measure({"entropy": entropies.mean().item()})
        p = logps.exp()
        weight = torch.where(inputs["expert"][:, None], p / (p + 0.1), (logps - logps.detach()).exp())
        loss = -(weight * inputs["advantages"][:, None] * inputs["completion_mask"]).sum()
        return loss / (self.recipe.generations * self.recipe.questions_per_step * self.recipe.max_completion_tokens)

    def after_step(self, step):
        while len(self.buffer) >= self.recipe.held:
            rows, self.buffer = self.buffer[: self.recipe.held], self.buffer[self.recipe.held :]
            self.second.step(self.likelihood(row) / len(rows) for row in rows)
            self.second_steps += 1

    def likelihood(self, row):
        ids = torch.tensor([self.prompt(row) + self.trace(row)])
        return self.model(input_ids=ids, labels=ids).loss

    def save_more(self, directory):
        super().save_more(directory)
        self.second.save(directory)
        (directory / "buffer.json").write_text(json.dumps([self.buffer, self.second_steps]))

    def load_more(self, directory):
        super().load_more(directory)
        self.second.load(directory)
        self.buffer, self.second_steps = json.loads((directory / "buffer.json").read_text())


def parts(recipe):
    return Parts(MixedTrainer, {"loss_type": "dr_grpo", "beta": 0.0})


def train(run):
    train_rollouts(run, *parts(run.recipe)[:2])
