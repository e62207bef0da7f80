"""Causal tracing against one restoration at a time in float64, its laws, planted knowledge, facts that do not fit."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
)

from scalpel.analysis import trace as tracing
from scalpel.analysis.trace import BEFORE, KINDS, layers_above, position_classes, trace, window
from scalpel.config.analysis import TraceRecipe, TraceSettings
from scalpel.errors import UserError
from scalpel.exhibits import causal_trace
from scalpel.exhibits.options import ExhibitOptions
from scalpel.weights import load_model
from tests.trace_reference import WORDS, known_facts, one_at_a_time, save_random_model, word_tokenizer

PROMPTS = [  # subject, prompt, where its tokens begin (BOS aside) and how many they are
    ("Bern", "The capital of Bern is", 5, 1),  # one token, with its blank; "The" begins the prompt and is in letters
    ("Oslo Lima", "Oslo Lima was the home of", 0, 5),  # O s l o ĠLima
    ("Riga", "The language was Riga", 5, 1),  # ends the prompt
    ("Zaxxy", "The founder of Zaxxy", 6, 5),  # in letters; the blank before it is a token of its own, and none of it
    ("Kiev blue Rome red", "The colour of Kiev blue Rome red is", 5, 4),
]


def write_facts(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module", params=["olmo2", "llama"])
def traced(request, tmp_path_factory):
    """A random model's directory, its facts (two unknown), and their file."""
    directory = tmp_path_factory.mktemp(request.param)
    save_random_model(directory, request.param)
    rows = known_facts(directory, [(subject, prompt) for subject, prompt, _, _ in PROMPTS])
    rows.insert(2, rows[0] | {"attribute": next(word for word in WORDS if word != rows[0]["attribute"])})
    rows.append(rows[0] | {"attribute": "quite unknown"})
    return directory, rows, write_facts(directory / "facts.parquet", rows)


def run(directory, path, out, batch_size=256, **recipe):
    out.mkdir(exist_ok=True)
    trace(directory, path, TraceRecipe(**recipe), TraceSettings(batch_size=batch_size), out)
    return pd.read_parquet(out / "trace.parquet"), json.loads((out / "notes.json").read_text())


def expected_std(directory, rows):
    """ROME's collect_embedding_std: each subject by itself, all elements."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    found = [
        model.get_input_embeddings()(torch.tensor(tokenizer(row["subject"], add_special_tokens=False)["input_ids"]))
        for row in rows
    ]
    return torch.cat(found).detach().numpy().std(ddof=1)


@pytest.mark.parametrize(("width", "batch_size"), [(1, 256), (2, 4), (3, 7), (10, 256)])
def test_equals_one_restoration_at_a_time_in_float64(traced, width, batch_size, tmp_path):
    directory, rows, facts = traced
    frame, notes = run(directory, facts, tmp_path, batch_size, window=width, samples=3, noise=2, seed=5)
    model = AutoModelForCausalLM.from_pretrained(directory).double()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    deviation = expected_std(directory, rows)
    assert notes["noise_std"] == pytest.approx(2 * deviation, rel=1e-5)
    assert notes["rows_left_out"] == [2, 6] and (notes["facts"], notes["used"], notes["left_out"]) == (7, 5, 2)
    assert sorted(frame["fact"].unique()) == [0, 1, 3, 4, 5]
    largest = 0
    for row, of_fact in frame.groupby("fact"):
        ids = tokenizer(rows[row]["prompt"])["input_ids"]
        _, _, begin, count = next(item for item in PROMPTS if item[1] == rows[row]["prompt"])
        begin += tokenizer.bos_token_id in ids
        subject = range(begin, begin + count)
        answer = tokenizer(" " + rows[row]["attribute"], add_special_tokens=False)["input_ids"][0]
        noise = 2 * deviation * np.random.default_rng([5, row]).standard_normal((3, count, 32))
        clean, corrupted, effects = one_at_a_time(model, ids, subject, answer, noise, width)
        assert np.allclose(of_fact["clean"], clean, atol=1e-5)
        assert np.allclose(of_fact["corrupted"], corrupted, atol=1e-5)
        assert len(of_fact) == effects.size
        kinds = of_fact["kind"].map(KINDS.index)
        assert np.allclose(of_fact["effect"], effects[kinds, of_fact["token"], of_fact["layer"]], rtol=0, atol=1e-5)
        largest = max(largest, np.abs(effects[1:]).max())
    assert largest > 0.05  # of modules: there was something to compare


def test_the_last_state_of_all_is_the_clean_one(traced, tmp_path):
    directory, _, facts = traced
    frame, _ = run(directory, facts, tmp_path, samples=4)
    last = frame[(frame["kind"] == "hidden") & (frame["position"] == "last") & (frame["layer"] == 3)]
    assert len(last) == 5
    assert np.allclose(last["effect"], last["clean"] - last["corrupted"], atol=1e-6)
    others = frame[(frame["kind"] == "hidden") & (frame["position"] != "last") & (frame["layer"] == 3)]
    assert np.allclose(others["effect"], 0, atol=1e-6)  # nobody attends to them any more
    assert (frame.loc[frame["position"] == BEFORE, "effect"] == 0).all() and (frame["position"] == BEFORE).any()


def test_without_noise_nothing_has_an_effect(traced, tmp_path):
    directory, rows, facts = traced
    model, tokenizer = load_model(directory, "float32"), AutoTokenizer.from_pretrained(directory)
    fact = tracing.tokenised_fact(tokenizer, facts, 0, **rows[0])
    clean = tracing.clean_run(model, fact)
    found = tracing.effects(model, fact, clean, np.zeros((2, len(fact.subject), 32)), 3, 16)
    assert found.corrupted == pytest.approx(clean.probability, abs=1e-6)
    assert np.abs(found.effect).max() < 1e-6


def test_twice_the_same_and_other_seeds_others(traced, tmp_path):
    directory, _, facts = traced
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(directory, facts, tmp_path / name, samples=2, facts=2, seed=seed)
    files = [(tmp_path / name / "trace.parquet").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert json.loads((tmp_path / "a" / "notes.json").read_text())["facts"] == 2


def test_bos_is_what_the_tokenizer_adds(traced):
    directory, rows, facts = traced
    tokenizer = AutoTokenizer.from_pretrained(directory)
    fact = tracing.tokenised_fact(tokenizer, facts, 1, **rows[1])
    with_bos = "llama" in directory.name
    assert (fact.ids[0] == tokenizer.bos_token_id) == with_bos
    assert fact.subject.start == with_bos and len(fact.subject) == 5  # O s l o ĠLima
    assert fact.ids == tokenizer(rows[1]["prompt"])["input_ids"]


def test_average_indirect_effect(traced, tmp_path):
    """The mean over facts of each fact's mean, and Student's interval."""
    directory, _, facts = traced
    frame, _ = run(directory, facts, tmp_path, samples=2)
    aie = pd.read_parquet(tmp_path / "aie.parquet")
    assert set(aie["position"]) == set(tracing.POSITIONS) and set(aie["kind"]) == set(KINDS)
    assert not aie.duplicated(["kind", "position", "layer"]).any()
    for row in aie.itertuples():
        of_class = frame[(frame.kind == row.kind) & (frame.position == row.position) & (frame.layer == row.layer)]
        values = of_class.groupby("fact")["effect"].mean().to_numpy()
        assert row.facts == len(values)
        assert row.aie == pytest.approx(values.mean(), abs=1e-12)
        if len(values) > 1:
            assert row.stderr == pytest.approx(stats.sem(values), abs=1e-12)
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert (row.low, row.high) == pytest.approx((low, high), abs=1e-12)
        else:
            assert all(np.isnan([row.stderr, row.low, row.high]))


@pytest.mark.parametrize(
    ("subject", "tokens", "classes"),
    [
        (range(0, 4), 8, "first_s middle_s middle_s last_s first_after further further last"),
        (range(2, 4), 6, "before before first_s last_s first_after last"),
        (range(1, 2), 3, "before last_s last"),
        (range(0, 1), 4, "last_s first_after further last"),
        (range(1, 3), 3, "before first_s last"),
        (range(2, 3), 3, "before before last"),
    ],
)
def test_position_classes(subject, tokens, classes):
    names = {"first_s": "first subject", "middle_s": "middle subject", "last_s": "last subject"}
    names |= {"first_after": "first subsequent", "further": "further", "last": "last", "before": BEFORE}
    assert position_classes(subject, tokens) == [names[name] for name in classes.split()]


def test_window_of_ten_is_the_papers():
    assert list(window(16, 10, 32)) == list(range(11, 21))  # layer - 5 to layer + 4
    assert list(window(2, 10, 32)) == list(range(0, 7)) and list(window(31, 10, 32)) == list(range(26, 32))
    assert list(window(3, 1, 4)) == [3] and list(window(3, 3, 9)) == [2, 3, 4]


# ---------------------------------------------------------------- planted knowledge


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A Llama of six layers that knows six facts in a known way.

    The MLP of layer 1 writes what it knows of a subject onto its token, the attention of layer 3 carries it to the
    last token, and there the MLP of layer 4 turns it into the attribute. All other modules write nothing.
    """
    directory = tmp_path_factory.mktemp("planted")
    subjects, attributes = ["red", "blue", "Rome", "Oslo", "Lima", "Bern"], ["pine", "oak", "fir", "elm", "ash", "yew"]
    words = [*subjects, *(f" {word}" for word in [*subjects, *attributes, "home", "of", "is"])]
    tokenizer = word_tokenizer(words, bos=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=8, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        layers = model.model.layers
        model.model.embed_tokens.weight[:, 63] = 1
        for i, (subject, attribute) in enumerate(zip(subjects, attributes, strict=True)):
            tokens = tokenizer(f"{subject} {subject} {attribute}", add_special_tokens=False)["input_ids"]
            assert len(tokens) == 3
            model.model.embed_tokens.weight[tokens[:2]] = 10 * torch.eye(64)[i]
            for layer, reads, writes in ((1, i, 8 + i), (4, 16 + i, 24 + i)):
                layers[layer].mlp.gate_proj.weight[i, reads] = 1
                layers[layer].mlp.up_proj.weight[i, reads] = 1
                layers[layer].mlp.down_proj.weight[writes, i] = 1
            layers[3].self_attn.v_proj.weight[i, 8 + i] = 1
            layers[3].self_attn.o_proj.weight[16 + i, i] = 1
            model.lm_head.weight[tokens[2], 24 + i] = 1
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    rows = [
        {"subject": subject, "prompt": f"The home of {subject} is", "attribute": attribute}
        for subject, attribute in zip(subjects, attributes, strict=True)
    ]
    return directory, write_facts(directory / "facts.parquet", rows)


def test_planted_knowledge_is_found_where_it_lies(planted, tmp_path):
    directory, facts = planted
    _, notes = run(directory, facts, tmp_path, window=1, noise=10)
    assert notes["used"] == 6
    aie = pd.read_parquet(tmp_path / "aie.parquet").set_index(["kind", "position", "layer"])["aie"]
    assert [layer for layer in range(6) if aie["mlp", "last subject", layer] > 0.1] == [1]
    assert [layer for layer in range(6) if aie["attention", "last", layer] > 0.1] == [3]
    assert [layer for layer in range(6) if aie["hidden", "last subject", layer] > 0.1] == [0, 1, 2]
    assert [layer for layer in range(6) if aie["hidden", "last", layer] > 0.1] == [3, 4, 5]
    assert layers_above(tmp_path / "aie.parquet", 0.1) == [4]
    assert layers_above(tmp_path / "aie.parquet", 0.1, kind="attention") == [3]
    run(directory, facts, tmp_path, window=3, noise=10)
    assert layers_above(tmp_path / "aie.parquet", 0.1) == [3, 4, 5]


def test_layers_above_needs_a_threshold_that_divides(planted, tmp_path):
    directory, facts = planted
    run(directory, facts, tmp_path, window=1, noise=10)
    path = tmp_path / "aie.parquet"
    with pytest.raises(UserError, match=r"no layer's AIE \(mlp, last token\) is above the threshold 1; the largest is"):
        layers_above(path, 1)
    with pytest.raises(UserError, match=r"every layer's .* above the threshold -0\.5; the smallest is"):
        layers_above(path, -0.5)


def test_layers_are_chosen_without_torch():
    code = "import sys, scalpel.analysis.trace; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------- what does not fit


def test_real_subjects_are_found_by_the_real_tokenizer(shared_data):
    """All 1000 facts of ROME's first file, with OLMo-2's tokenizer: their text, no more than a blank beside it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared_data / "olmo2_tokenizer" / "tokenizer.json"))
    path = next((shared_data / "rome_known_1000").glob("known_0000*.parquet"))
    rows = tracing.read_facts(path, None)
    assert len(rows) == 1000
    straddling = 0
    for number, row in enumerate(rows):
        fact = tracing.tokenised_fact(tokenizer, path, number, **row)
        text = tokenizer.decode(fact.ids[fact.subject.start : fact.subject.stop], clean_up_tokenization_spaces=False)
        assert row["subject"] in text
        straddling += text.strip() != row["subject"]
        assert text.strip() in row["prompt"] and len(text) <= len(row["subject"]) + 4
        assert tokenizer.decode(fact.ids, clean_up_tokenization_spaces=False) == row["prompt"]
        assert f" {row['attribute']}".startswith(tokenizer.decode([fact.answer]))
        assert position_classes(fact.subject, len(fact.ids))[-1] == "last"
    assert straddling < 20


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"subject": "Paris"}, r"row 1: the subject 'Paris' does not occur in the prompt"),
        ({"attribute": ""}, "row 1 has no text in attribute"),
        ({"prompt": None}, "row 1 has no text in prompt"),
    ],
)
def test_a_fact_that_does_not_fit_is_named(traced, tmp_path, changed, sentence):
    directory, rows, _ = traced
    facts = write_facts(tmp_path / "facts.parquet", [rows[0], rows[1] | changed])
    with pytest.raises(UserError, match=sentence):
        run(directory, facts, tmp_path)


def test_unusable_facts_are_refused(traced, tmp_path):
    directory, rows, _ = traced
    with pytest.raises(UserError, match="answer with the attribute"):
        run(directory, write_facts(tmp_path / "unknown.parquet", rows[-1:]), tmp_path)
    pq.write_table(pa.table({"subject": ["x"], "prompt": ["x"]}), tmp_path / "columns.parquet")
    with pytest.raises(UserError, match="attribute"):
        run(directory, tmp_path / "columns.parquet", tmp_path)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="no readable parquet"):
        run(directory, tmp_path / "damaged.parquet", tmp_path)


def test_a_model_of_other_parts_is_refused(tmp_path):
    tokenizer = word_tokenizer([f" {word}" for word in WORDS], bos=False)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = {"subject": "Bern", "prompt": "The capital of Bern is", "attribute": "red"}
    with pytest.raises(UserError, match="made like Olmo2 and Llama only"):
        run(tmp_path, write_facts(tmp_path / "facts.parquet", [row]), tmp_path)


SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (lambda n: GraniteConfig(vocab_size=n, embedding_multiplier=12.0, **SMALL), "layer 0 by itself"),
        (lambda n: MistralConfig(vocab_size=n, sliding_window=2, **SMALL), "layer 0 by itself"),
        (lambda n: Olmo3Config(vocab_size=n, **SMALL), "rotary embeddings differ"),
    ],
)
def test_a_model_whose_layers_take_more_than_is_known_is_refused(config, why, tmp_path):
    """What its layers say by themselves is compared with what they say in the model."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f" {word}" for word in WORDS], bos=False)
    AutoModelForCausalLM.from_config(config(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = {"subject": "Bern", "prompt": "The capital of Bern is", "attribute": "red"}
    with pytest.raises(UserError, match=why):
        run(tmp_path, write_facts(tmp_path / "facts.parquet", [row]), tmp_path)


# ---------------------------------------------------------------- the figure


class Results:
    """Traces by (run, seed), as an exhibit reads them."""

    def __init__(self, traces):
        self.traces = traces

    def read(self, stage, file, columns):
        assert stage == "trace"
        frames = [
            pd.read_parquet(directory / file, columns=columns).assign(
                run=run, seed=seed, part="", shard=1, reference="base"
            )
            for (run, seed), directory in self.traces.items()
        ]
        return pd.concat(frames, ignore_index=True)


class Style:
    def figure(self, width, height, title):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title)
        return figure


def test_heat_maps_show_each_trace_once(planted, traced, tmp_path):
    directory, facts = planted
    for name, where, path in (("base", directory, facts), ("other", traced[0], traced[2])):
        run(where, path, tmp_path / name, window=1, noise=10)
    base, other = tmp_path / "base", tmp_path / "other"
    options = ExhibitOptions(labels={"own": "Own"})
    frame = causal_trace.table(Results({("frozen", 1): base, ("frozen", 2): base, ("own", 1): other}), options)
    assert list(frame.columns) == ["run", "seed", *causal_trace.COLUMNS]
    assert set(zip(frame["run"], frame["seed"], strict=True)) == {("frozen", 1), ("own", 1)}
    first = frame[frame["run"] == "frozen"].drop(columns=["run", "seed"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(first, pd.read_parquet(base / "aie.parquet"))
    figure = causal_trace.draw(frame, options, Style())
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [values.shape for values in maps[:3]] == [(6, 6)] * 3 and [values.shape for values in maps[3:]] == [
        (6, 4)
    ] * 3
    mlp = first[(first["kind"] == "mlp") & (first["position"] == "last subject")].sort_values("layer")["aie"]
    assert np.allclose(maps[1][2], mlp) and maps[1][1].mask.all()  # the planted facts have no middle subject token
    figure.savefig(tmp_path / "figure.png")
