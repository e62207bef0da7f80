"""Engines: what is sampled, what is scored, and a model in training left as it was."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scalpel.chat import load_tokenizer, token_ids
from scalpel.errors import UserError
from scalpel.inference import EngineSettings, open_engine
from scalpel.inference.requests import Request
from scalpel.inference.sampling import pick
from scalpel.inference.transformers_engine import TransformersEngine
from scalpel.weights import load_model

QUESTIONS = ["How many?", "Tom has 2 pens and gets 3 more. How many now?", "Say it.", "A, B or C? " * 6]


@pytest.fixture(scope="module")
def engine(tiny_base) -> TransformersEngine:
    return open_engine("transformers", tiny_base, EngineSettings(batch_size=16))


@pytest.fixture(scope="module")
def prompts(tiny_base) -> list[list[int]]:
    """Of different lengths, with a common beginning."""
    tokenizer = load_tokenizer(tiny_base)
    return [token_ids(tokenizer, question) for question in QUESTIONS]


def requests(prompts, samples=3, most=24):
    return [Request(prompt, (7, number), samples, most) for number, prompt in enumerate(prompts)]


# ---------------------------------------------------------------- sampling


def generated(model, tokenizer, prompt, most):
    """transformers' own greedy completion, up to its end."""
    ids = torch.tensor([prompt])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=1
    )[0, len(prompt) :].tolist()
    end = tokenizer.eos_token_id
    return (written[: written.index(end)], end) if end in written else (written, None)


def test_greedy_completions_are_those_of_generate(engine, prompts):
    """Shared prefix, padding inside the prompt, in-place cache and rows that leave change nothing."""
    for prompt, mine in zip(prompts, engine.complete(requests(prompts, 2, 80), 0.0, 1.0), strict=True):
        ids, end = generated(engine.model, engine.tokenizer, prompt, 80)
        assert mine[0][:2] == mine[1][:2] == (ids, end)


def test_layers_that_see_a_window_are_given_their_own_mask(tiny_base, prompts):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=448, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=6, max_position_embeddings=256, eos_token_id=0,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 5  # so that what is attended to matters
    engine = TransformersEngine(model, load_tokenizer(tiny_base), 8)
    for prompt, [mine] in zip(prompts, engine.complete(requests(prompts, 1, 30), 0.0, 1.0), strict=True):
        assert mine[:2] == generated(model, engine.tokenizer, prompt, 30)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(0.6, 0.95, None), (1.3, 1.0, None), (1.0, 0.3, None), (1.3, 1.0, 5), (0.6, 0.8, 7), (1.0, 1.0, 100)],
)
def test_sampling_follows_the_distribution(temperature, top_p, top_k):
    """Evenly spaced draws hit every token of the nucleus in proportion to its probability, and no other."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 2
    probabilities = (logits[0].double() / temperature).softmax(-1)
    if top_k:
        probabilities[probabilities.argsort(descending=True)[top_k:]] = 0
        probabilities /= probabilities.sum()
    kept, total = [], 0.0
    for token in probabilities.argsort(descending=True).tolist():  # the smallest set that holds top_p of the mass
        kept.append(token)
        total += probabilities[token].item()
        if total >= top_p:
            break
    n = 20000
    draws = (torch.arange(n) + 0.5).double() / n
    picked, logprobs = pick(logits.expand(n, -1), draws, temperature, top_p, logprobs=True, top_k=top_k)
    counts = torch.bincount(picked, minlength=30).double() / n
    for token in range(30):
        wanted = probabilities[token].item() / total if token in kept else 0.0
        assert counts[token].item() == pytest.approx(wanted, abs=2 / n)
    expected = (probabilities[picked] / total).log()
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_p", [0.0, 0.5, 1.0])
def test_draws_at_both_ends_pick_a_token_that_has_a_probability(top_p):
    logits = torch.tensor([[-200.0, 1.0, 3.0, 2.0, -200.0]] * 2)  # the outer ones: nothing, in float32
    draws = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    picked, _ = pick(logits, draws, 1.0, top_p)
    assert picked.tolist() == {0.0: [2, 2], 0.5: [2, 2], 1.0: [1, 3]}[top_p]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_seeds_alone_decide_what_is_sampled(engine, prompts, top_p):
    asked = requests(prompts, samples=5)
    together = engine.complete(asked, 1.0, top_p)
    assert len({tuple(one.ids) for mine in together for one in mine}) > 15
    for size in (1, 2, 3, 7, 64):  # 1 to 3: a request is cut up
        other = TransformersEngine(engine.model, engine.tokenizer, size)
        assert other.complete(asked, 1.0, top_p) == together
    assert engine.complete(asked[::-1], 1.0, top_p) == together[::-1]
    assert [engine.complete([request], 1.0, top_p)[0] for request in asked] == together
    assert engine.complete([request._replace(seed=(8, 1)) for request in asked], 1.0, top_p) != together


def test_completions_end_with_their_token_or_for_want_of_room(engine, prompts):
    asked = [
        request._replace(max_tokens=most) for request, most in zip(requests(prompts, 8), (1, 9, 40, 20), strict=True)
    ]
    ended = set()
    for request, mine in zip(asked, engine.complete(asked, 1.0, 1.0, logprobs=True), strict=True):
        assert len(mine) == 8
        for one in mine:
            ended.add(one.end)
            assert one.end in (None, engine.tokenizer.eos_token_id) and engine.tokenizer.eos_token_id not in one.ids
            assert len(one.ids) == request.max_tokens if one.end is None else len(one.ids) < request.max_tokens
            assert len(one.logprobs) == len(one.ids) + (one.end is not None)
    assert ended == {None, engine.tokenizer.eos_token_id}


def test_any_end_token_of_the_model_ends(engine, prompts, monkeypatch):
    [[whole]] = engine.complete(requests(prompts[:1], 1, 20), 0.0, 1.0)
    token = whole.ids[2]
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", [engine.tokenizer.eos_token_id, token])
    [[cut]] = engine.complete(requests(prompts[:1], 1, 20), 0.0, 1.0)
    assert (cut.ids, cut.end) == (whole.ids[: whole.ids.index(token)], token)


# ---------------------------------------------------------------- scoring


def by_loop(model, context, continuation):
    """One forward pass in float64, without cache or batch."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    found = list(zip(logits[list(places)], continuation, strict=True))
    return sum(row[token].item() for row, token in found), all(int(row.argmax()) == token for row, token in found)


def test_loglikelihoods_equal_a_float64_loop(engine, tiny_base, prompts):
    model = load_model(tiny_base).double()
    [[greedy]] = engine.complete(requests(prompts[3:], 1, 6), 0.0, 1.0)
    pairs = [(prompt, end) for prompt in prompts for end in ([5], [6], [7, 8], [7, 9], [9, 9, 9, 5, 5])]
    pairs += [(prompts[3], greedy.ids), (prompts[3], greedy.ids[:1]), ([4], [5]), ([4], [5, 6])]
    for size in (1, 4, 64):
        found = TransformersEngine(engine.model, engine.tokenizer, size).loglikelihoods(pairs)
        for (value, best), (context, continuation) in zip(found, pairs, strict=True):
            expected = by_loop(model, context, continuation)
            assert value == pytest.approx(expected[0], abs=1e-4) and best == expected[1]
    assert found[-4][1] and found[-3][1]


def test_logprobs_of_completions_are_their_loglikelihoods(engine, prompts):
    asked = requests(prompts)
    for request, mine in zip(asked, engine.complete(asked, 1.0, 1.0, logprobs=True), strict=True):
        for one in mine:
            written = one.ids + ([one.end] if one.end is not None else [])
            [(value, _)] = engine.loglikelihoods([(request.prompt, written)])
            assert sum(one.logprobs) == pytest.approx(value, abs=1e-4)


# ---------------------------------------------------------------- a model in training


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_in_training_is_left_as_it_was(tiny_base, prompts, autocast):
    model, tokenizer = load_model(tiny_base), load_tokenizer(tiny_base)
    model.train()
    model.model.layers[0].eval()  # a part that is not
    ids = torch.tensor([prompts[1]])
    engine = TransformersEngine(model, tokenizer, 8)

    def gradients(between=lambda: None):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            between()
            loss = model(input_ids=ids, labels=ids).loss
        model.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone = gradients()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = []
    after = gradients(lambda: found.append(engine.complete(requests(prompts), 1.0, 1.0)))
    assert torch.equal(torch.get_rng_state(), state) and [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(alone, after, strict=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert engine.complete(requests(prompts), 1.0, 1.0) == found[0]
        engine.loglikelihoods([(prompts[0], [5])])
    with torch.inference_mode():
        engine.complete(requests(prompts), 1.0, 1.0)


# ---------------------------------------------------------------- memory and weights


def test_half_a_batch_is_tried_when_memory_is_short(engine, prompts, monkeypatch):
    from scalpel.inference import scoring, transformers_engine

    reference = engine.complete(requests(prompts), 1.0, 1.0)
    pairs = [(prompt, [5]) for prompt in prompts]
    scores = engine.loglikelihoods(pairs)
    sampled, scored = transformers_engine.sample, scoring.score

    def most(rows):
        def sample(model, groups, *rest):
            if sum(len(group.draws) for group in groups) > rows:
                raise torch.OutOfMemoryError("no")
            return sampled(model, groups, *rest)

        def score(model, batch, *rest):
            if len(batch) > rows:
                raise torch.OutOfMemoryError("no")
            return scored(model, batch, *rest)

        monkeypatch.setattr(transformers_engine, "sample", sample)
        monkeypatch.setattr(scoring, "score", score)
        return TransformersEngine(engine.model, engine.tokenizer, 16)

    for rows in (5, 2, 1):  # below 3: the samples of one prompt are cut up
        small = most(rows)
        assert small.complete(requests(prompts), 1.0, 1.0) == reference
        assert small.batch_size < 16
        assert np.allclose(small.loglikelihoods(pairs), scores, atol=1e-5)
    with pytest.raises(UserError, match="one prompt alone"):
        most(0).complete(requests(prompts), 1.0, 1.0)
    with pytest.raises(UserError, match="one prompt alone"):
        most(0).loglikelihoods(pairs)


def test_weights_sent_are_taken_whole(tiny_base, other_base, prompts):
    engine = open_engine("transformers", tiny_base, EngineSettings())
    first = engine.complete(requests(prompts), 0.0, 1.0)
    engine.load(other_base)
    second = engine.complete(requests(prompts), 0.0, 1.0)
    assert second != first
    tensors = load_file(tiny_base / "model.safetensors")
    engine.load_tensors(tensors.items())
    assert engine.complete(requests(prompts), 0.0, 1.0) == first
    name = "model.norm.weight"
    for sent, words in (
        ({n: t for n, t in tensors.items() if n != name}, f"tensor {name} is missing"),
        (tensors | {"other": tensors[name]}, "tensor other is none"),
        (tensors | {name: tensors[name][:5]}, f"tensor {name} has shape"),
    ):
        with pytest.raises(UserError, match=words):
            engine.load_tensors(sent.items())
