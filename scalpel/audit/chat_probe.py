"""The probe of chat template and special tokens, on the tokenizer of the very base model that runs start from.

One conversation is made into ids by every stage that makes any: SFT, the rollouts of the methods that sample, KL, and
both harnesses of evaluation. A tokenizer may add what its template already writes (a post-processor that puts BOS in
front), and a stage that lets it then trains or asks under another prompt than the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from scalpel.artifact.checking import checked
from scalpel.audit.probes import Probe
from scalpel.chat import load_tokenizer, token_ids
from scalpel.errors import UserError
from scalpel.inference.requests import Completion, Request, end_tokens

ROW = {"uuid": "u", "problem": "Tom has 2 pens and gets 3 more. How many?", "answer": "5",
       "trace": "<think>\n2 + 3 = 5\n</think>\n<answer>\n5\n</answer>"}  # fmt: skip
CLOCK = "strftime_now"  # by which a template writes the day it is rendered on
EXPECTED = "SFT's ids in every stage, and an end that sampling stops at"


class Heard:
    """In place of an engine: keeps what is asked of it."""

    max_length = 10**6

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def complete(self, requests: Sequence[Request], *_: Any) -> list[list[Completion]]:
        self.requests.extend(requests)
        return [[] for _ in requests]


def ids_by_stage(base: Path) -> dict[str, tuple[list[int], list[int]]]:
    """(ids of the prompt, of the whole conversation) as each stage makes them from the tokenizer in `base`."""
    from lighteval.tasks.requests import Doc

    from scalpel.analysis.kl import tokenised
    from scalpel.config.evaluation import EvaluationRecipe
    from scalpel.evaluation.lighteval_engine import LightevalEngine
    from scalpel.evaluation.lm_eval_engine import LMEvalEngine
    from scalpel.methods import METHODS
    from scalpel.methods.rollouts import RolloutTrainer
    from scalpel.methods.sft import SFTRecipe
    from scalpel.methods.sft_trainer import tokenized

    tokenizer = load_tokenizer(base)
    sft = tokenized(tokenizer, {0: ROW}, [0], SFTRecipe(learning_rate=1, epochs=1, loss_on="completion"))[0]
    kl = tokenised(tokenizer, 0, ROW["problem"], ROW["trace"])
    rollouts = RolloutTrainer.__new__(RolloutTrainer)
    rollouts.processing_class, rollouts.rows, rollouts.prompts = tokenizer, {0: ROW}, {}
    rollouts.recipe = cast("Any", METHODS["grpo"].Recipe)(learning_rate=1)
    heard = Heard()
    doc = Doc(query=ROW["problem"], choices=[""], gold_index=0, task_name="x", id="0", generation_size=1, num_samples=1)
    asked = EvaluationRecipe(tasks=cast("Any", {"math_500": {}}))
    LightevalEngine(cast("Any", heard), tokenizer, asked).greedy_until([doc])
    harness = LMEvalEngine(cast("Any", heard), tokenizer, 1)
    turn = harness.apply_chat_template([{"role": "user", "content": ROW["problem"]}])
    whole = token_ids(tokenizer, ROW["problem"], ROW["trace"])
    return {
        "SFT": (sft["input_ids"][: sft["trained_from"]], sft["input_ids"]),
        "rollouts": (rollouts.prompt(0), rollouts.prompt(0) + rollouts.trace(0)),
        "KL": (kl.ids[: kl.solution_start], kl.ids),
        "evaluation by LightEval": (heard.requests[0].prompt, whole),
        "evaluation by lm-eval": (harness.tok_encode(turn), whole),
    }


def chat_template(base: Path) -> Probe:
    """Whether every stage feeds the same ids, on any day, and a token that ends sampling ends a trained answer.

    base: a directory with a model's tokenizer. A stage that cannot make ids of it fails the probe, too.
    """
    try:
        tokenizer, found = load_tokenizer(base), ids_by_stage(base)
    except UserError:
        raise
    except Exception as error:  # whatever the harnesses and Jinja raise
        said = next(iter(str(error).splitlines()), type(error).__name__)
        return Probe("chat template", False, f"the stages' ids cannot be compared: {said[:300]}", EXPECTED, "none")
    wrong = [f"{name} ({differs(tokenizer, found['SFT'], ids)})" for name, ids in found.items() if ids != found["SFT"]]
    if not ends(base, tokenizer.eos_token_id) & set(found["SFT"][1][-2:]):  # some templates end a turn with a newline
        wrong.append("the end of an answer, at which sampling does not stop")
    if CLOCK in (tokenizer.chat_template or ""):
        wrong.append(f"every stage on another day, which the template writes ({CLOCK})")
    return Probe("chat template", not wrong, f"other ids than SFT's: {', '.join(wrong) or 'none'}", EXPECTED, "none")


def differs(tokenizer: Any, right: tuple[list[int], list[int]], ids: tuple[list[int], list[int]]) -> str:
    """The first place where a stage's ids are not SFT's, in words."""
    for part, wanted, found in zip(("prompt", "conversation"), right, ids, strict=True):
        if wanted != found:
            place = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
            place = min(len(wanted), len(found)) if place is None else place
            said = [repr(tokenizer.decode(one[place : place + 1])) or "nothing" for one in (found, wanted)]
            return f"token {place} of the {part} is {said[0]}, SFT's {said[1]}"
    return "none"


def ends(base: Path, tokenizer_end: int) -> set[int]:
    """The tokens at which engines stop: the tokenizer's and those of the model's generation_config.json."""
    path = base / "generation_config.json"
    named = json.loads(checked(path).read_text()).get("eos_token_id") if path.is_file() else None
    return end_tokens(named, tokenizer_end)
