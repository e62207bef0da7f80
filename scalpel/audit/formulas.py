"""The referee's losses of the methods that learn from expert traces: what a first step's gradient has to be.

Written from the methods' formulas (their sources: scalpel/methods/<method>.py) over whole sequences, one at a time, in
float64: advantages are taken from the rewards again, and no function of scalpel/methods is used. In the first step of
a batch the ratio p / p_old is 1, where the gradient of every surrogate, clipped or not, is that of -A log p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from scalpel.methods.rollouts import EXPERT, Rollout

NORMALISERS = {  # MixedRecipe's names, and what the sum of the policy terms is divided by
    "ranks": "max_completion_tokens x normaliser_ranks",
    "completions": "sequences x max_completion_tokens",
    "tokens": "tokens of the step",
}
EACH, MICRO, RANKS = (
    "tokens of each sequence, then sequences",
    "tokens of each micro-batch, then micro-batches",
    "tokens of each rank, then ranks",
)
ALMOST_NOTHING = 1e-6  # added to standard deviations, as the methods' own code does
Groups = list[list[Rollout]]
Cut = list[list[list[Rollout]]]  # by rank and micro-batch
Terms = list[tuple[Rollout, torch.Tensor]]  # of a sequence's tokens


class Objective(NamedTuple):
    """policy, likelihood: terms of tokens, those that take no gradient at 0. explored: entropies whose mean, in nats,
    is in the loss. The weights are of the sums over all of them."""

    policy: Terms
    likelihood: Terms
    explored: list[torch.Tensor]
    policy_weight: float = 1.0
    likelihood_weight: float = 1.0


class Scored(NamedTuple):
    """Of a sequence's own tokens, (tokens,), in nats; at the recipe's temperature."""

    logps: torch.Tensor
    entropies: torch.Tensor


class Referee:
    """Scores sequences under a float64 model, and says what a recipe credits them with."""

    def __init__(self, recipe: Any, model: Any, groups: Groups):
        self.recipe, self.model = recipe, model.double()
        self.groups = [[r for r in group if r.origin != EXPERT] for group in groups]
        self.traces = [[r for r in group if r.origin == EXPERT] for group in groups]
        self.whole = groups
        self.found: dict[int, Scored] = {}

    def learnt(self, rollout: Rollout) -> bool:
        return rollout.ended or not self.recipe.mask_truncated_completions

    def __call__(self, rollout: Rollout) -> Scored:
        if id(rollout) not in self.found:
            ids = torch.tensor([rollout.prompt + rollout.ids])
            logits = self.model(input_ids=ids).logits[0, len(rollout.prompt) - 1 : -1] / self.recipe.temperature
            every = logits.log_softmax(-1)
            chosen = every[range(len(rollout.ids)), rollout.ids]
            self.found[id(rollout)] = Scored(chosen, -(every.exp() * every).sum(-1))
        return self.found[id(rollout)]

    def reward(self, rollout: Rollout) -> float:
        weights = {"accuracy": self.recipe.accuracy_weight, "format": self.recipe.format_weight}
        return sum(weights[name] * value for name, value in rollout.rewards.items() if value is not None)

    def advantages(self, group: list[Rollout], of: list[bool] | None = None) -> list[float]:
        """Rewards less their mean over `of`, over their deviation where the recipe says so."""
        values = [self.reward(rollout) for rollout in group]
        among = [value for value, counts in zip(values, of or [True] * len(group), strict=True) if counts]
        mean, scale = sum(among) / len(among), 1.0
        if self.recipe.scale_rewards == "group" and len(among) > 1:
            scale = math.sqrt(sum((v - mean) ** 2 for v in among) / (len(among) - 1)) + ALMOST_NOTHING
        return [(value - mean) / scale for value in values]

    def policy(self, group: list[Rollout]) -> Terms:
        """-A log p of a group's completions that are learnt from."""
        credited = zip(group, self.advantages(group), strict=True)
        return [(r, -advantage * self(r).logps) for r, advantage in credited if self.learnt(r)]

    def likelihood(self, traces: list[Rollout], weight: Callable[[Rollout], Any] = lambda _: 1.0) -> Terms:
        """-w log p of traces that are learnt from."""
        return [(trace, -weight(trace) * self(trace).logps) for trace in traces if self.learnt(trace)]

    def entropies(self, rollouts: list[Rollout]) -> list[torch.Tensor]:
        return [self(rollout).entropies for rollout in rollouts if self.learnt(rollout)]

    def off_policy(self, trace: Rollout, advantage: float) -> torch.Tensor:
        """-f(p) A of a trace's tokens."""
        logps = self(trace).logps
        p = logps.exp()
        f = {"shaped": p / (p + self.recipe.gamma), "ratio": p, "log": logps}[self.recipe.shaping]
        return -advantage * f


def everyone(groups: Groups) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


# ---------------------------------------------------------------- methods


def plain(referee: Referee) -> Objective:
    """GRPO on own completions: ReLIFT's and MIFO's policy updates."""
    terms = [term for group in referee.groups for term in referee.policy(group)]
    return Objective(terms, [], referee.entropies(everyone(referee.groups)))


def template_rl(referee: Referee) -> Objective:
    """Advantages over all of a question's completions, or over those to each of its prompts."""
    if referee.recipe.mean_over == "template":
        of = [{tuple(r.prompt): [o for o in group if o.prompt == r.prompt] for r in group} for group in referee.groups]
        referee.groups = [part for parts in of for part in parts.values()]
    return plain(referee)


def luffy(referee: Referee) -> Objective:
    """-A r of own tokens, -A f(p) of a trace's."""
    terms = []
    for group in referee.whole:
        own = [referee.recipe.mean_over == "group" or r.origin != EXPERT for r in group]
        for rollout, advantage in zip(group, referee.advantages(group, own), strict=True):
            if referee.learnt(rollout):
                expert = rollout.origin == EXPERT
                term = referee.off_policy(rollout, advantage) if expert else -advantage * referee(rollout).logps
                terms.append((rollout, term))
    return Objective(terms, [], referee.entropies(everyone(referee.whole)))


def srft(referee: Referee) -> Objective:
    """Own completions by whether they are right; a trace by policy terms and by its likelihood, weighed by exp(H)."""
    recipe, policy, likelihood = referee.recipe, [], []
    for group in referee.whole:
        for rollout, advantage in zip(group, referee.advantages(group), strict=True):
            if not referee.learnt(rollout):
                continue
            logps, entropies = referee(rollout)
            h = float(entropies.detach().mean())
            if rollout.origin == EXPERT:
                policy.append((rollout, recipe.demonstration_weight * referee.off_policy(rollout, advantage)))
                likelihood.append((rollout, -recipe.sft_scale * math.exp(recipe.sft_exponent * h) * logps))
                continue
            right = rollout.rewards["accuracy"] == 1.0
            weight = -recipe.rl_scale * math.exp(recipe.rl_exponent * h) if right else recipe.wrong_weight
            policy.append((rollout, weight * (logps.exp() if recipe.own_term == "probability" else logps)))
    return Objective(policy, likelihood, referee.entropies(everyone(referee.whole)))


def prefix_rft(referee: Referee) -> Objective:
    """A hybrid's prefix is learnt from in its share of tokens of highest entropy."""
    recipe, terms = referee.recipe, []
    for group in referee.groups:
        *others, hybrid = group
        values = [referee.reward(rollout) for rollout in group]
        mean = sum(values[:-1]) / len(others)
        after = referee.advantages(group)
        before = after[-1]
        if recipe.estimator != "group":
            split = recipe.estimator == "split"
            after = [*(value - mean for value in values[:-1]), values[-1] if split else 0.0]
            before = values[-1] - mean if split else -mean
        for rollout, advantage in zip(group, after, strict=True):
            if not referee.learnt(rollout):
                continue
            logps, entropies = referee(rollout)
            weights = torch.full_like(logps, advantage)
            if rollout is hybrid:
                order = entropies[: rollout.prefix].detach().argsort(descending=True)
                weights[: rollout.prefix] = 0.0
                weights[order[: math.ceil(round(recipe.entropy_share * rollout.prefix, 6))]] = before
            terms.append((rollout, -weights * logps))
    return Objective(terms, [], referee.entropies(everyone(referee.groups)))


def gated(referee: Referee, by_trace: Callable[[list[Rollout]], bool]) -> Objective:
    """Some questions by their completions, the others by their traces."""
    own = [group for group in referee.groups if not by_trace(group)]
    traces = [
        trace for group, of in zip(referee.groups, referee.traces, strict=True) if by_trace(group) for trace in of
    ]
    terms = [term for group in own for term in referee.policy(group)]
    explored = referee.entropies(everyone(own) + traces)
    return Objective(terms, referee.likelihood(traces), explored, likelihood_weight=referee.recipe.sft_weight)


def hpt(referee: Referee) -> Objective:
    return gated(referee, lambda group: sum(r.rewards["accuracy"] == 1.0 for r in group) <= referee.recipe.gate)


def superrl(referee: Referee) -> Objective:
    return gated(referee, lambda group: not any(referee.reward(r) > 0 for r in group))


def chord(referee: Referee) -> Objective:
    """(1 - mu) GRPO + mu likelihood; mu is that of the first batch."""
    recipe, traces = referee.recipe, everyone(referee.traces)
    mu = 0.0 if recipe.mu_warmup else recipe.mu_first

    def weight(trace: Rollout) -> Any:
        p = referee(trace).logps.detach().exp()
        return {"p(1-p)": p * (1 - p), "p": p, "none": 1.0}[recipe.token_weight]

    terms = [term for group in referee.groups for term in referee.policy(group)]
    explored = referee.entropies(everyone(referee.groups) + traces)
    return Objective(terms, referee.likelihood(traces, weight), explored, 1 - mu, mu)


def uft(referee: Referee) -> Objective:
    """GRPO after the hint, the likelihood of the hint."""
    terms, hints, entropies = [], [], []
    for group in referee.groups:
        for rollout, term in referee.policy(group):
            logps, entropy = referee(rollout)
            terms.append((rollout, term[rollout.prefix :]))
            hints.append((rollout, -logps[: rollout.prefix]))
            entropies.append(entropy[rollout.prefix :])
    return Objective(terms, hints, entropies, likelihood_weight=referee.recipe.sft_weight)


def sasr(referee: Referee) -> Objective:
    """A batch by its traces, where it has them, or by own completions."""
    traces = everyone(referee.traces)
    if not traces:
        return plain(referee)
    return Objective([], referee.likelihood(traces), referee.entropies(traces))


def red(referee: Referee) -> Objective:
    """GRPO + the likelihood, weighed by the accuracy of each question and the least weight of entropy."""
    recipe, traces = referee.recipe, everyone(referee.traces)
    weights: dict[int, float] = {}
    for group, of in zip(referee.groups, referee.traces, strict=True):
        accuracy = sum(r.rewards["accuracy"] or 0.0 for r in group) / len(group)
        weights |= {id(trace): recipe.accuracy_base ** (1 - 2 * accuracy) for trace in of}
    terms = [term for group in referee.groups for term in referee.policy(group)]
    return Objective(
        terms, referee.likelihood(traces, lambda trace: weights[id(trace)]),
        referee.entropies(everyone(referee.groups) + traces),
        likelihood_weight=recipe.sft_weight * recipe.least_weight,
    )  # fmt: skip


FORMULAS: dict[str, Callable[[Referee], Objective]] = {
    "luffy": luffy, "relift": plain, "srft": srft, "prefix_rft": prefix_rft, "hpt": hpt, "chord": chord,
    "superrl": superrl, "uft": uft, "mifo": plain, "sasr": sasr, "red": red, "template_rl": template_rl,
}  # fmt: skip
BRANCHES: dict[str, list[dict]] = {  # fields that lead the first batch through each branch of a method, a step for each
    "hpt": [{"skip_above": None}],
    "relift": [{"buffer_size": 10**6}],  # the SFT update is another optimizer's
    "mifo": [{"buffer_size": 10**6}],
    "sasr": [{"warmup_batches": 1}, {"warmup_batches": 0, "chance": 0.0}],
}


# ---------------------------------------------------------------- over what it is summed


def divisors(name: str, terms: Terms, recipe: Any, cut: Cut) -> dict[int, float]:
    """What the sum of a sequence's terms is divided by, by the sequence's id()."""
    tokens = {id(rollout): len(values) for rollout, values in terms}
    if name in (NORMALISERS["ranks"], NORMALISERS["completions"], NORMALISERS["tokens"]):
        whole = {
            NORMALISERS["ranks"]: recipe.max_completion_tokens * recipe.normaliser_ranks,
            NORMALISERS["completions"]: recipe.max_completion_tokens * recipe.questions_per_step * recipe.generations,
            NORMALISERS["tokens"]: sum(tokens.values()),
        }[name]
        return dict.fromkeys(tokens, max(whole, 1))
    if name == EACH:
        return {one: max(count, 1) * len(tokens) for one, count in tokens.items()}
    parts = [everyone(rank) for rank in cut] if name == RANKS else [part for rank in cut for part in rank]
    return {
        id(rollout): len(parts) * max(sum(tokens.get(id(other), 0) for other in part), 1)
        for part in parts
        for rollout in part
    }


def loss_of(objective: Objective, recipe: Any, cut: Cut, policy: str, likelihood: str) -> torch.Tensor:
    """The loss with its policy terms over `policy` and its likelihood terms over `likelihood`, names of `divisors`."""
    loss = torch.zeros((), dtype=torch.float64)
    for terms, name, weight in (
        (objective.policy, policy, objective.policy_weight),
        (objective.likelihood, likelihood, objective.likelihood_weight),
    ):
        by = divisors(name, terms, recipe, cut)
        loss = loss + weight * sum((values.sum() / by[id(rollout)] for rollout, values in terms), loss.new_zeros(()))
    if objective.explored:
        loss = loss - recipe.entropy_coefficient * torch.cat(objective.explored).mean()
    return loss


def asked_for(recipe: Any) -> tuple[str, str]:
    """Over what a recipe wants its policy terms and its likelihood terms summed."""
    return NORMALISERS[recipe.normaliser], NORMALISERS["tokens"]


def candidates(recipe: Any) -> list[tuple[str, str]]:
    """What `asked_for` says, then every other pair that is told apart."""
    right = asked_for(recipe)
    wrong = [(policy, right[1]) for policy in (*NORMALISERS.values(), EACH, MICRO, RANKS) if policy != right[0]]
    return [right, *wrong, *((right[0], likelihood) for likelihood in (EACH, MICRO, RANKS))]


def gradient_of(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }
