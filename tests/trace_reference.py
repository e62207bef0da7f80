"""Causal tracing one restoration at a time, and small models to trace: for tests/test_trace.py and benchmarks/trace.py.

`one_at_a_time` is written after the ROME paper and not after scalpel/analysis/trace.py: each restoration is one forward
pass of the whole prompt, one clean copy and all noised ones, with hooks on the modules themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

WORDS = ["capital", "of", "colour", "the", "language", "home", "founder", "is", "was", "red", "blue", "green"]
WORDS += ["Rome", "Oslo", "Lima", "Bern", "Kiev", "Riga"]


def one_at_a_time(model, ids: list[int], subject: range, answer: int, noise: np.ndarray, window: int):
    """(clean probability, corrupted probability, effects: hidden, mlp, attention x tokens x layers)."""
    layers = model.config.num_hidden_layers
    clean, _ = probabilities(model, ids, subject, answer, np.zeros_like(noise), [])
    _, corrupted = probabilities(model, ids, subject, answer, noise, [])
    effects = np.zeros((3, len(ids), layers))
    for token in range(len(ids)):
        for layer in range(layers):
            around = range(max(0, layer - window // 2), min(layers, layer - (-window // 2)))
            names = (
                [f"model.layers.{layer}"],
                [f"model.layers.{at}.mlp" for at in around],
                [f"model.layers.{at}.self_attn" for at in around],
            )
            for kind, restored in enumerate(names):
                _, after = probabilities(model, ids, subject, answer, noise, [(name, token) for name in restored])
                effects[kind, token, layer] = after - corrupted
    return clean, corrupted, effects


def probabilities(model, ids, subject, answer, noise, restored):
    """Probability of `answer` in the clean copy, and its mean over the noised ones with `restored` put back."""

    def disturb(module, inputs, output):
        output = output.clone()
        output[1:, subject.start : subject.stop] += torch.from_numpy(noise).to(output)
        return output

    def restore(token):
        def hook(module, inputs, output):
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[1:, token] = states[0, token]
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    handles = [model.get_submodule("model.embed_tokens").register_forward_hook(disturb)]
    handles += [model.get_submodule(name).register_forward_hook(restore(token)) for name, token in restored]
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids] * (len(noise) + 1)), use_cache=False).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    found = logits.softmax(-1)[:, answer]
    return float(found[0]), float(found[1:].mean())


def word_tokenizer(words: list[str], bos: bool):
    """A byte-level tokenizer of letters and the given words, each with or without a blank before; `bos`: as Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    merges = []

    for word in words:
        token = word.replace(" ", "Ġ")
        pairs = [(token[: end - 1], token[end - 1]) for end in range(2, len(token) + 1)]
        for pair in [("Ġ", token[1:])] if token[1:] in vocabulary else pairs:
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{{ messages[0]['content'] }}"
    return fast


def save_random_model(directory: Path, architecture: str, layers: int = 4, hidden: int = 32, seed: int = 0) -> None:
    """A random Olmo2 (no BOS) or Llama (BOS, grouped heads) with its tokenizer, whose next tokens are likely words."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Olmo2Config

    tokenizer = word_tokenizer([f" {word}" for word in WORDS], bos=architecture == "llama")
    config = {"olmo2": Olmo2Config, "llama": LlamaConfig}[architecture](
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4 if architecture == "olmo2" else 2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, pad_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[[i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip() not in WORDS]] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def known_facts(directory: Path, subjects_and_prompts: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows of a facts file whose attribute is what the model says next."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    rows = []
    for subject, prompt in subjects_and_prompts:
        with torch.no_grad():
            top = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].argmax()
        rows.append({"subject": subject, "prompt": prompt, "attribute": tokenizer.decode([int(top)]).strip()})
    return rows
