"""Losses of the mixed-policy methods from their formulas, in float64, one sequence at a time; and a run looked into.

Nothing of scalpel/methods but the rollouts' class is used: advantages, masks and normalisers are written out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from zlib import crc32

import torch
from transformers import AutoModelForCausalLM

from scalpel.methods import rewards
from scalpel.methods.loop import Saving
from scalpel.methods.rollouts import RolloutTrainer
from scalpel.methods.second_optimizer import SecondOptimizer

EXPERT, MIXED = "expert", "mixed"


@dataclass
class Seen:
    """A run's steps: groups of rollouts by number of update, and gradients and parameters by step."""

    groups: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    parameters: list = field(default_factory=list)
    second: list = field(default_factory=list)  # of SFT updates: parameters before and after, and first moments


def look_into(patch, one_in: int = 3) -> Seen:
    """Take down what later runs do. one_in: about so many completions are right, whatever they say."""
    seen, journal, second = Seen(), RolloutTrainer.journal, SecondOptimizer.step

    def before_step(self, args, state, control, model=None, **_):
        seen.parameters.append(copied(model))
        seen.gradients.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})

    def updated(self, *given):
        before = copied(self.trainer.model)
        found = second(self, *given)
        moments = {n: self.optimizer.state[p]["exp_avg"].clone() for n, p in self.parameters.items()}
        seen.second.append((before, copied(self.trainer.model), moments))
        return found

    def written(self, groups, step):
        seen.groups.append(groups)
        return journal(self, groups, step)

    def graded(_, answers, texts):
        return [float(crc32(text.encode()) % one_in == 0) for text in texts]

    patch.setattr(Saving, "on_pre_optimizer_step", before_step)
    patch.setattr(SecondOptimizer, "step", updated)
    patch.setattr(RolloutTrainer, "journal", written)
    patch.setattr(rewards, "accuracy", graded)
    return seen


def copied(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Policy:
    """A float64 model at given parameters."""

    def __init__(self, base, parameters, temperature: float):
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        self.model.load_state_dict({name: p.double() for name, p in parameters.items()}, strict=False)
        self.temperature = temperature

    def __call__(self, rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies of a rollout's own tokens, (tokens,)."""
        ids = torch.tensor([rollout.prompt + rollout.ids])
        logits = self.model(ids).logits[0, len(rollout.prompt) - 1 : -1] / self.temperature
        every = logits.log_softmax(-1)
        return every[range(len(rollout.ids)), rollout.ids], -(every.exp() * every).sum(-1)

    def gradient(self, loss) -> dict[str, torch.Tensor]:
        named = dict(self.model.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def distance(found: dict, wanted: dict) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    assert set(found) == set(wanted)
    apart = sum(float((found[n].double() - wanted[n].double()).square().sum()) for n in wanted)
    return math.sqrt(apart / sum(float(g.double().square().sum()) for g in wanted.values()))


@dataclass
class Step:
    """One optimizer step as a formula sees it. now, old, start: policies at the step, and when its batch and the run
    began."""

    recipe: object
    groups: list
    now: Policy
    old: Policy
    start: Policy

    def reward(self, rollout) -> float:
        return rollout.rewards["accuracy"] + self.recipe.format_weight * rollout.rewards["format"]

    def old_of(self, rollout) -> torch.Tensor:
        with torch.no_grad():
            return self.old(rollout)[0]


def centred(values: list[float], deviation: bool = False) -> list[float]:
    mean = sum(values) / len(values)
    scale = 1.0
    if deviation:
        scale = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) + 1e-6
    return [(v - mean) / scale for v in values]


def clipped(logps, old, advantage: float, low: float = 0.2) -> torch.Tensor:
    ratio = (logps - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clip(1 - low, 1 + low) * advantage)


def plain(logps, old, advantage: float) -> torch.Tensor:
    return -(logps - old).exp() * advantage


def own_terms(step: Step, groups, term, deviation=False) -> list[torch.Tensor]:
    """Of each completion, over its tokens; its entropies follow."""
    found = []
    for group in groups:
        for rollout, advantage in zip(group, centred([step.reward(r) for r in group], deviation), strict=True):
            logps, entropies = step.now(rollout)
            found.append((term(logps, step.old_of(rollout), advantage), entropies))
    return found


def total(terms) -> torch.Tensor:
    return sum(t.sum() for t in terms)


def likelihood(step: Step, traces, weight=lambda logps: 1.0) -> tuple[torch.Tensor, list]:
    """Mean of -w log p over the traces' tokens, and their entropies."""
    if not traces:
        return torch.zeros(()), []
    scores = [step.now(trace) for trace in traces]
    tokens = sum(len(logps) for logps, _ in scores)
    return -total([weight(logps) * logps for logps, _ in scores]) / tokens, [e for _, e in scores]


def explored(step: Step, entropies) -> torch.Tensor:
    return step.recipe.entropy_coefficient * torch.cat(entropies).mean()


def longest(step: Step) -> int:
    return step.recipe.max_completion_tokens * step.recipe.normaliser_ranks


# ---------------------------------------------------------------- methods


def luffy(step: Step) -> torch.Tensor:
    terms, entropies = [], []
    for group in step.groups:
        for rollout, advantage in zip(group, centred([step.reward(r) for r in group]), strict=True):
            logps, entropy = step.now(rollout)
            p = logps.exp()
            expert = rollout.origin == EXPERT
            terms.append(-p / (p + 0.1) * advantage if expert else plain(logps, step.old_of(rollout), advantage))
            entropies.append(entropy)
    return total(terms) / longest(step) - explored(step, entropies)


def relift(step: Step) -> torch.Tensor:
    found = own_terms(step, step.groups, plain)
    return total([t for t, _ in found]) / longest(step) - explored(step, [e for _, e in found])


mifo = relift


def srft(step: Step) -> torch.Tensor:
    policy, demonstrations, entropies, tokens = [], [], [], 0
    for group in step.groups:
        for rollout, advantage in zip(group, centred([step.reward(r) for r in group]), strict=True):
            logps, entropy = step.now(rollout)
            h, p = entropy.mean().detach(), logps.exp()
            entropies.append(entropy)
            if rollout.origin == EXPERT:
                demonstrations.append(-0.5 * torch.exp(-h) * logps)
                policy.append(-p / (p + 0.1) * advantage)
                tokens += len(logps)
            elif rollout.rewards["accuracy"] == 1.0:
                policy.append(-0.1 * torch.exp(h) * logps)
            else:
                policy.append(logps)
    return total(policy) / longest(step) + total(demonstrations) / tokens - explored(step, entropies)


def prefix_rft(step: Step) -> torch.Tensor:
    terms, entropies = [], []
    for group in step.groups:
        for rollout, advantage in zip(group, centred([step.reward(r) for r in group]), strict=True):
            (logps, entropy), old, cut = step.now(rollout), step.old_of(rollout), rollout.prefix
            order = entropy[:cut].detach().argsort(descending=True)
            chosen = order[: math.ceil(round(0.2 * cut, 6))]
            terms += [plain(logps[chosen], old[chosen], advantage), clipped(logps[cut:], old[cut:], advantage)]
            entropies.append(entropy)
    return total(terms) / sum(map(len, entropies)) - explored(step, entropies)


def gated(step: Step, is_gated, term) -> torch.Tensor:
    """Over half of the questions' completions and the others' traces."""
    asked = [([r for r in g if r.origin != EXPERT], [r for r in g if r.origin == EXPERT]) for g in step.groups]
    assert all(bool(traces) == is_gated(own) for own, traces in asked)
    found = own_terms(step, [own for own, traces in asked if not traces], term)
    negative, entropies = likelihood(step, [t for _, traces in asked for t in traces])
    entropies = entropies + [e for _, e in found]
    return total([t for t, _ in found]) / longest(step) + negative - explored(step, entropies)


def hpt(step: Step) -> torch.Tensor:
    return gated(step, lambda own: sum(r.rewards["accuracy"] for r in own) <= step.recipe.gate, plain)


def superrl(step: Step) -> torch.Tensor:
    return gated(step, lambda own: all(step.reward(r) == 0 for r in own), clipped)


def apart(step: Step) -> tuple[list, list]:
    """Groups without traces, and the traces."""
    own = [[r for r in group if r.origin != EXPERT] for group in step.groups]
    return own, [r for group in step.groups for r in group if r.origin == EXPERT]


def chord(step: Step, mu: float = 0.9) -> torch.Tensor:
    own, traces = apart(step)
    terms = [t for t, _ in own_terms(step, own, clipped)]

    def weight(logps):
        return (logps.exp() * (1 - logps.exp())).detach()

    return (1 - mu) * total(terms) / sum(map(len, terms)) + mu * likelihood(step, traces, weight)[0]


def uft(step: Step) -> torch.Tensor:
    terms, kls, entropies, hints = [], [], [], []
    for group in step.groups:
        for rollout, advantage in zip(group, centred([step.reward(r) for r in group], True), strict=True):
            (logps, entropy), old, cut = step.now(rollout), step.old_of(rollout), rollout.prefix
            difference = step.start(rollout)[0].detach() - logps
            terms.append(clipped(logps[cut:], old[cut:], advantage))
            kls.append((difference.exp() - difference - 1)[cut:])
            entropies.append(entropy[cut:])
            hints.append(-logps[:cut])
    recipe, everything = step.recipe, torch.cat
    loss = everything(terms).mean() + recipe.beta * everything(kls).mean() + 0.001 * everything(hints).mean()
    return loss - recipe.entropy_coefficient * everything(entropies).mean()


def sasr(step: Step) -> torch.Tensor:
    own, traces = apart(step)
    if traces:
        loss, entropies = likelihood(step, traces)
        return loss - explored(step, entropies)
    found = own_terms(step, own, clipped, deviation=True)
    terms = torch.cat([t for t, _ in found])
    return terms.mean() - explored(step, [e for _, e in found])


def red(step: Step, weight: float = 0.1) -> torch.Tensor:
    own, traces = apart(step)
    found = own_terms(step, own, clipped, deviation=True)
    scores = [step.now(trace) for trace in traces]
    accuracy = [sum(r.rewards["accuracy"] for r in group) / len(group) for group in own]
    negative = -total([5 ** (1 - 2 * a) * logps for a, (logps, _) in zip(accuracy, scores, strict=True)])
    loss = torch.cat([t for t, _ in found]).mean() + weight * negative / sum(len(logps) for logps, _ in scores)
    return loss - explored(step, [e for _, e in found] + [e for _, e in scores])


def template_rl(step: Step) -> torch.Tensor:
    found = own_terms(step, step.groups, clipped, deviation=True)
    return torch.cat([t for t, _ in found]).mean() - explored(step, [e for _, e in found])


# ---------------------------------------------------------------- SFT updates


def demonstrations(policy: Policy, traces, share: float, coefficient: float) -> torch.Tensor:
    """Mean of -log p over the `share` of each trace's tokens with the highest entropies, less the mean entropy."""
    chosen, entropies = [], []
    for trace in traces:
        logps, entropy = policy(trace)
        order = entropy.detach().argsort(descending=True)
        chosen.append(-logps[order[: math.ceil(round(share * len(logps), 6))]])
        entropies.append(entropy)
    return torch.cat(chosen).mean() - coefficient * torch.cat(entropies).mean()
