"""FLOPs of training: by the accounting of "SFT-then-RL" (its appendix B), and counted sequence by sequence.

The paper's: a forward pass costs 2 N a token and a backward pass 4 N; a completion is written (2 N) and trained on
(6 N), a trace is trained on alone. Prompts, attention, passes for log-probabilities are left out, N is a round number.

Counted: a token is multiplied with every weight matrix (the embeddings are looked up, not multiplied), and attends to
itself and all tokens before it. A backward pass costs 2 for what flows back and 2 for the gradients of the weights that
train. Gradient checkpointing, padding and whole squares of attention are how it is carried out, and are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scalpel.cost.shape import Shape


class Multiplied(NamedTuple):
    """What of a model a token meets. matrices: entries of weight matrices, those of lm_head among them. attention:
    layers x heads x head size, twice multiplied for each pair of tokens."""

    matrices: int
    attention: int

    @classmethod
    def of(cls, shape: Shape) -> Multiplied:
        inside = shape.layers * sum(shape.projections.values())
        return cls(inside + shape.vocabulary * shape.hidden, shape.layers * shape.heads * shape.head_size)

    def forward(self, first: Any, last: Any) -> Any:
        """FLOPs of tokens `first` (from 0) up to but without `last`, when those before are kept. Numbers or arrays."""
        pairs = (last * (last + 1) - first * (first + 1)) / 2
        return 2 * self.matrices * (last - first) + 4 * self.attention * pairs

    def trained(self, last: Any, share: float = 1.0) -> Any:
        """FLOPs of a sequence in forward and backward passes. share: of the matrices' entries that train."""
        return self.forward(0, last) * 3 - 2 * self.matrices * (1 - share) * last


class Published(NamedTuple):
    """One method's row of the paper's table 6 with what its appendix B says of it. printed: FLOPs, as they stand there.

    Tokens are those of a response. own, traces: sequences a question. demonstrations: traces in SFT updates.
    """

    printed: float
    steps: int
    questions: int
    own: int
    rollout_tokens: float
    traces: int = 0
    demonstrations: int = 0

    def parts(self, parameters: float, trace_tokens: float) -> dict[str, float]:
        """By the paper's own accounting. question_own, question_traces: of one question; rl, sft: of the run; total."""
        own = 8 * self.own * parameters * self.rollout_tokens
        traces = 6 * self.traces * parameters * trace_tokens
        rl = (own + traces) * self.steps * self.questions
        sft = 6 * parameters * trace_tokens * self.demonstrations
        return {"question_own": own, "question_traces": traces, "rl": rl, "sft": sft, "total": rl + sft}

    def counted(self, model: Multiplied, trace_tokens: float, prompt_tokens: float) -> dict[str, float]:
        """trained, scored (log-probabilities of the policy that wrote), written; all sequences of their mean length."""
        asked = self.steps * self.questions
        own, trace = prompt_tokens + self.rollout_tokens, prompt_tokens + trace_tokens
        written = model.forward(0, prompt_tokens) + self.own * model.forward(prompt_tokens, own)
        trained = self.own * model.trained(own) + self.traces * model.trained(trace)
        scored = self.own * model.forward(0, own) + self.traces * model.forward(0, trace)
        sft = self.demonstrations * model.trained(trace)
        return {"trained": asked * trained + sft, "scored": asked * scored, "written": asked * written}
