"""The one chat template: filter, trainers, KL and evaluation all render with it.

The text is that of the training template of Neelectric/open-r1_olmo (rendered ids are compared with
the authors' in tests/): conversations carry no system message, and the template puts the system prompt
in front of the first user turn. Like theirs, that branch writes ``<|user|>`` with no newline after it,
while a conversation with an explicit system message gets ``<|user|>\n``. `conversation` never adds a
system message, so one branch alone is used in the whole experiment.

``{% generation %}`` marks what the assistant wrote, for completion-only losses; it renders nothing.
"""

from pathlib import Path

SYSTEM_PROMPT = (
    "You are a helpful AI Assistant that provides well-reasoned and detailed responses. "
    "You first think about the reasoning process as an internal monologue and then provide the user "
    "with the answer. Respond in the following format: <think>\n...\n</think>\n<answer>\n...\n</answer>"
)

TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{ '<|system|>\n" + SYSTEM_PROMPT.replace("\n", "\\n") + "\n<|user|>' + message['content'] + '\n' }}"
    "{%- elif message['role'] in ('system', 'user') -%}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>\n' }}"
    "{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- if not loop.last -%}{{ '\n' }}{%- endif -%}"
    "{%- endif -%}"
    "{%- if loop.last and add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
    "{%- endfor -%}"
)


def conversation(question: str, response: str | None = None) -> list[dict[str, str]]:
    """Messages of one exchange, without a system message (the template supplies it)."""
    messages = [{"role": "user", "content": question}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def load_tokenizer(directory: Path):
    """The tokenizer saved with a model, checked to carry this very template.

    Raises UserError when the directory holds no tokenizer or another chat template: ids would then
    differ between stages without anybody noticing.
    """
    from transformers import AutoTokenizer

    from scalpel.errors import UserError

    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} holds no tokenizer.json; point `model.path` at a saved model or tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if tokenizer.chat_template != TEMPLATE:
        raise UserError(
            f"{directory} carries another chat template than scalpel/chat.py; "
            "use the model directory written by the base stage (results/base/...)."
        )
    return tokenizer


def render(tokenizer, question: str, response: str | None = None) -> str:
    """Text of one exchange; with no response, the prompt that ends in the assistant's turn."""
    return tokenizer.apply_chat_template(
        conversation(question, response), tokenize=False, add_generation_prompt=response is None
    )


def token_ids(tokenizer, question: str, response: str | None = None) -> list[int]:
    """Token ids of `render`. The template writes BOS itself, so nothing is added around it."""
    return tokenizer(render(tokenizer, question, response), add_special_tokens=False)["input_ids"]
