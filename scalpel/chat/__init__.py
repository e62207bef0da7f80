"""Chat templates by name, and rendering: filter, trainers, KL and evaluation all render with the base model's.

A base model's tokenizer is saved with its template (scalpel/base_model.py), and every checkpoint carries a copy, so
one text decides the token ids of all stages; tests compare them. `conversation` adds a system message only where a
recipe gives one: the templates here put their system prompt in front of the first user turn.

* ``scalpel_vs_hammer``: the text of the training template of Neelectric/open-r1_olmo (rendered ids are compared with
  the authors' in tests/). Like theirs, the branch without a system message writes ``<|user|>`` with no newline after
  it, while a conversation with an explicit one gets ``<|user|>\\n``.
* ``sft_then_rl``: figure 5 of "SFT-then-RL Outperforms Mixed-Policy Methods". The line breaks between its parts are
  ours, the figure shows none. The prompt ends with ``<think>``, which therefore is no part of a completion (`opening`).
* ``prime_zero``: the prompt that evaluation scripts of others ask Eurus-2-7B-PRIME-Zero by (sail-sg/understand-r1-zero,
  evaluate_model.py). They know one turn alone; blank lines between turns are ours.
* ``own``: the model's own.

``{% generation %}`` marks what the assistant wrote, for completion-only losses; it renders nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalpel.artifact.checking import checked
from scalpel.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = Path(__file__).parent / "templates"
OWN = "own"
SYSTEM_PROMPT = (  # of scalpel_vs_hammer
    "You are a helpful AI Assistant that provides well-reasoned and detailed responses. "
    "You first think about the reasoning process as an internal monologue and then provide the user "
    "with the answer. Respond in the following format: <think>\n...\n</think>\n<answer>\n...\n</answer>"
)
THINK = "<think>\n"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def template_text(name: str, where: str = "chat_template") -> str | None:
    """The Jinja text of a named template or of a file; None for the model's own. UserError when there is none."""
    if name == OWN:
        return None
    named = TEMPLATES / f"{name}.jinja"
    if "/" not in name and named.is_file():
        return named.read_text().removesuffix("\n")
    path = Path(name)
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text()
    names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
    raise UserError(f"{where}: {name!r} is neither a template ({names}, {OWN}) nor the path of a .jinja file.")


def conversation(question: str, response: str | None = None, system: str | None = None) -> list[dict[str, str]]:
    """Messages of one exchange; without a system message unless one is given (the template supplies it)."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model, its chat template included.

    Raises UserError when the directory holds no tokenizer or one without a template: ids would then differ between
    stages without anybody noticing.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} holds no tokenizer.json; point `models` at a saved model with its tokenizer.")
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            checked(directory / name)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise UserError(
            f"{directory}: its tokenizer has no chat template; use the model directory written by the base stage "
            "(results/base/...), or name a template in `models.<name>.chat_template`."
        )
    return tokenizer


def check_template(tokenizer: PreTrainedTokenizerBase, where: str, trained: bool = True) -> set[int]:
    """Refuse a template that the stages cannot work with: the prompt must begin the conversation, EOS must end it.

    trained: whether something is trained by it; else another special token may end the conversation.
    Returns the special tokens that end it. Raises UserError naming what is wrong.
    """
    try:
        prompt, whole = render(tokenizer, "How many?"), render(tokenizer, "How many?", "Three.")
    except Exception as error:  # Jinja raises what the template raises
        raise UserError(f"{where}: its chat template does not render a question and an answer ({error}).") from None
    if not whole.startswith(prompt):
        raise UserError(f"{where}: with its chat template a prompt is not the beginning of the conversation.")
    if "Three." not in whole[len(prompt) :]:
        raise UserError(f"{where}: its chat template does not show what the assistant says.")
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} | {tokenizer.eos_token_id}
    ends = special.intersection(ids[-2:])  # some end the turn with a newline after it
    if not ends or (trained and tokenizer.eos_token_id not in ends):
        wanted = repr(tokenizer.eos_token) if trained else "a special token of the base model's tokenizer"
        raise UserError(f"{where}: a conversation rendered with its chat template does not end in {wanted}.")
    return ends


def control_text(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """What text of a problem or an answer must not hold: it would become a special token or a turn of its own.

    These are the tokenizer's special tokens, and what the template marks turns with (``<|user|>``). The think and
    answer tags are ordinary text.
    """
    found = set(tokenizer.all_special_tokens)
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= set(re.findall(r"<\|[^|<>\s]+\|>", tokenizer.chat_template or ""))
    tags = {"<think>", "</think>", "<answer>", "</answer>"}
    return re.compile("|".join(map(re.escape, sorted(found - tags, key=len, reverse=True))) or r"(?!)")


def holds(control: re.Pattern, value: Any) -> bool:
    """Whether such text stands anywhere in a value: text, or lists and objects of it."""
    if isinstance(value, (list, dict)):
        return any(holds(control, item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and control.search(value) is not None


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template itself lets the assistant's turn begin with, of what the tags' rules look at: ``<think>``."""
    return THINK if render(tokenizer, "?").endswith(THINK) else ""


def render(
    tokenizer: PreTrainedTokenizerBase, question: str, response: str | None = None, system: str | None = None
) -> str:
    """Text of one exchange; with no response, the prompt that ends in the assistant's turn."""
    return tokenizer.apply_chat_template(
        conversation(question, response, system), tokenize=False, add_generation_prompt=response is None
    )


def token_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, response: str | None = None, system: str | None = None
) -> list[int]:
    """Token ids of `render`. The template writes BOS itself, so nothing is added around it."""
    return tokenizer(render(tokenizer, question, response, system), add_special_tokens=False)["input_ids"]
