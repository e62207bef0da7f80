"""KL and weight change against independent float64 references, their laws, and damaged input."""

import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from scalpel.analysis.kl import by_length, kl, kl_of_positions, read_questions
from scalpel.analysis.weight_change import weight_change
from scalpel.chat import load_tokenizer, render, token_ids
from scalpel.config.analysis import KLRecipe, KLSettings
from scalpel.config.training import PROJECTIONS
from scalpel.errors import UserError


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base


@pytest.fixture(scope="module")
def checkpoints(base, tmp_path_factory):
    """Two checkpoints: the base with noise of two strengths."""
    from transformers import AutoModelForCausalLM

    made = []
    for step, strength in ((5, 0.01), (10, 0.3)):
        model = AutoModelForCausalLM.from_pretrained(base)
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += strength * parameter.std() * torch.randn(parameter.shape, generator=generator)
        path = tmp_path_factory.mktemp("run") / f"step-{step:06d}"
        model.save_pretrained(path)
        made.append((step, path))
    return made


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Five problems of unequal length; one solution begins with a newline, one is empty."""
    path = tmp_path_factory.mktemp("questions") / "math_500.parquet"
    rows = [
        ("Tom has 3 red apples.", "He eats 2 of them: $\\boxed{1}$"),
        ("Why?", "\nBecause of 12 reasons, and " * 6),
        ("Tom has 31 red apples and eats 7 of them. " * 4, "24"),
        ("Count.", ""),
        ("Tom eats.", "He eats red apples"),
    ]
    pq.write_table(pa.table({"problem": [r[0] for r in rows], "solution": [r[1] for r in rows]}), path)
    return path


def measured(base, checkpoints, questions, out, recipe=None, **settings):
    out.mkdir(exist_ok=True)
    kl(base, checkpoints, questions, recipe or KLRecipe(), KLSettings(**settings), out)
    return pq.read_table(out / "kl.parquet").to_pylist()


def test_kl_equals_float64_reference(base, checkpoints, questions, tmp_path):
    from transformers import AutoModelForCausalLM

    rows = measured(base, checkpoints, questions, tmp_path / "out")
    tokenizer = load_tokenizer(base)
    expected = []
    reference = AutoModelForCausalLM.from_pretrained(base).double()
    for step, path in checkpoints:
        model = AutoModelForCausalLM.from_pretrained(path).double()
        for row, item in enumerate(pq.read_table(questions).to_pylist()):
            ids = torch.tensor([token_ids(tokenizer, item["problem"], item["solution"])])
            prompt = render(tokenizer, item["problem"])
            with torch.no_grad():
                p = reference(ids).logits[0].softmax(-1)
                q = model(ids).logits[0].softmax(-1)
            per_position = (p * (p / q).log()).sum(-1)
            # the prompt's tokens are those whose decoded text stays inside the prompt
            begin = max(n for n in range(ids.shape[1]) if len(tokenizer.decode(ids[0, :n])) <= len(prompt))
            solution = per_position[begin - 1 : -1]
            expected.append((step, row, ids.shape[1], len(solution), per_position.mean(), solution.mean()))
    assert [(r["step"], r["question"], r["positions"], r["solution_positions"]) for r in rows] == [
        e[:4] for e in expected
    ]
    for row, (*_, mean, solution_mean) in zip(rows, expected, strict=True):
        assert row["kl"] == pytest.approx(float(mean), rel=1e-3, abs=1e-9)
        assert row["kl_solution"] == pytest.approx(float(solution_mean), rel=1e-3, abs=1e-9)
    assert all(r["kl"] > 0 for r in rows)


def test_kl_of_a_model_with_itself_is_zero(base, questions, tmp_path):
    rows = measured(base, [(0, base)], questions, tmp_path / "out")
    assert all(r["kl"] == 0 and r["kl_solution"] == 0 for r in rows)


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_kl_is_of_the_models_logits_or_refused(base, questions, tmp_path, scaling):
    """Granite divides its logits: its head's product with the hidden states is something else."""
    from transformers import AutoModelForCausalLM, GraniteConfig

    config = GraniteConfig(
        vocab_size=len(load_tokenizer(base)), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, logits_scaling=scaling,
    )  # fmt: skip
    directory = copy(base, tmp_path / "granite")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    if scaling == 1:
        assert all(row["kl"] == 0 for row in measured(directory, [(0, directory)], questions, tmp_path / "out"))
    else:
        with pytest.raises(UserError, match="granite: its logits are not lm_head's product"):
            measured(directory, [(0, directory)], questions, tmp_path / "out")


def test_kl_does_not_depend_on_chunks_or_batches(base, checkpoints, questions, tmp_path):
    whole = measured(base, checkpoints, questions, tmp_path / "whole", chunk=100_000, batch_tokens=100_000)
    small = measured(base, checkpoints, questions, tmp_path / "small", chunk=7, batch_tokens=1)
    for a, b in zip(whole, small, strict=True):
        assert a["kl"] == pytest.approx(b["kl"], abs=1e-6)
        assert a["kl_solution"] == pytest.approx(b["kl_solution"], abs=1e-6)


def test_kl_is_not_negative():
    torch.manual_seed(0)
    heads = torch.nn.Linear(8, 50, bias=False), torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(64, 8)
    values = kl_of_positions(hidden, heads[0], hidden, heads[1], chunk=10)
    assert values.shape == (64,) and (values > 0).all()
    nearly = kl_of_positions(hidden, heads[0], hidden * (1 + 1e-7), heads[0], chunk=10)
    assert (nearly >= 0).all() and (nearly < 1e-6).all()


def test_kl_tokens_are_the_chat_template_s(base, questions):
    asked, *_ = read_questions(questions, base, KLRecipe())
    tokenizer = load_tokenizer(base)
    for question, item in zip(asked, pq.read_table(questions).to_pylist(), strict=True):
        assert question.ids == token_ids(tokenizer, item["problem"], item["solution"])
        assert tokenizer.decode(question.ids[question.solution_start :]) == item["solution"] + tokenizer.eos_token


def test_kl_leaves_long_rows_out_and_says_so(base, checkpoints, questions, tmp_path):
    rows = measured(base, checkpoints[:1], questions, tmp_path / "out", KLRecipe(max_tokens=40))
    notes = json.loads((tmp_path / "out" / "notes.json").read_text())
    assert notes["rows_left_out_as_too_long"] and notes["questions"] == len(rows)
    assert {r["question"] for r in rows} | set(notes["rows_left_out_as_too_long"]) == set(range(5))
    with pytest.raises(UserError, match="max_tokens"):
        measured(base, checkpoints[:1], questions, tmp_path / "none", KLRecipe(max_tokens=1))


def test_batches_hold_every_question_once(base, questions):
    asked, *_ = read_questions(questions, base, KLRecipe())
    batches = by_length(asked, 100)
    assert sorted(q.row for batch in batches for q in batch) == [q.row for q in asked]
    assert all(len(batch) == 1 or len(batch) * max(len(q.ids) for q in batch) <= 100 for batch in batches)


def test_kl_names_a_damaged_checkpoint(base, checkpoints, questions, tmp_path):
    cut = copy(checkpoints[0][1], tmp_path / "cut")
    truncate(cut / "model.safetensors", 100)
    with pytest.raises(UserError, match="cut"):
        measured(base, [(1, cut)], questions, tmp_path / "out")
    lacking = copy(checkpoints[0][1], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj"):
        measured(base, [(1, lacking)], questions, tmp_path / "out")
    sick = copy(checkpoints[0][1], tmp_path / "sick")
    tensors = load_file(sick / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not finite"):
        measured(base, [(1, sick)], questions, tmp_path / "out")


def test_kl_names_unreadable_questions(base, tmp_path):
    path = tmp_path / "questions.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"questions\.parquet"):
        read_questions(path, base, KLRecipe())
    pq.write_table(pa.table({"problem": ["a"], "solution": pa.array([None], pa.string())}), path)
    with pytest.raises(UserError, match="row 0"):
        read_questions(path, base, KLRecipe())
    pq.write_table(pa.table({"problem": ["a"]}), path)
    with pytest.raises(UserError, match="solution"):
        read_questions(path, base, KLRecipe())


# ---------------------------------------------------------------- weight change


def reference_change(base, path):
    """(layer, projection) -> ||difference||, ||base||, whole tensors in float64."""
    originals, others = ({k: v.double() for k, v in load_file(d / "model.safetensors").items()} for d in (base, path))
    found = {}
    for name, tensor in originals.items():
        parts = name.split(".")
        if len(parts) == 6 and parts[4] in PROJECTIONS:
            found[int(parts[2]), parts[4]] = (float((others[name] - tensor).norm()), float(tensor.norm()))
    return found


def change(base, checkpoints, out, threads=1):
    out.mkdir(exist_ok=True)
    weight_change(base, checkpoints, out, threads)
    return pq.read_table(out / "weight_change.parquet").to_pylist()


def check(rows, base, checkpoints, rel):
    assert [(r["step"], r["layer"], r["projection"]) for r in rows] == [
        (step, layer, projection) for step, _ in checkpoints for layer in (0, 1) for projection in PROJECTIONS
    ]
    references = {step: reference_change(base, path) for step, path in checkpoints}
    for r in rows:
        difference, norm = references[r["step"]][r["layer"], r["projection"]]
        assert r["change_norm"] == pytest.approx(difference, rel=rel)
        assert r["base_norm"] == pytest.approx(norm, rel=rel)
        assert r["relative"] == pytest.approx(difference / norm, rel=rel)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk", [100, 256 * 1024])
def test_weight_change_equals_float64_reference(base, checkpoints, tmp_path, threads, chunk, monkeypatch):
    monkeypatch.setattr("scalpel.analysis.weight_change.CHUNK", chunk)
    check(change(base, checkpoints, tmp_path, threads), base, checkpoints, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_weight_change_of_other_dtypes(base, checkpoints, tmp_path, dtype):
    stored = []
    for name, source in (("base", base), ("checkpoint", checkpoints[1][1])):
        path = copy(source, tmp_path / name)
        tensors = {k: v.to(dtype) for k, v in load_file(path / "model.safetensors").items()}
        save_file(tensors, path / "model.safetensors")
        stored.append(path)
    check(change(stored[0], [(1, stored[1])], tmp_path / "out"), stored[0], [(1, stored[1])], 1e-6)
    mixed = [(1, checkpoints[0][1])]  # float32 checkpoint against a base of another dtype
    check(change(stored[0], mixed, tmp_path / "out"), stored[0], mixed, 1e-6)


def test_weight_change_of_the_base_is_zero(base, tmp_path):
    assert all(r["relative"] == 0 for r in change(base, [(0, base)], tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_alone_is_no_weight_change(base, checkpoints, tmp_path, dtype):
    """A checkpoint stored more coarsely than its base; what training changed is found all the same."""
    rounded = []
    for name, source in (("same", base), ("trained", checkpoints[1][1])):
        rounded.append(copy(source, tmp_path / name))
        path = rounded[-1] / "model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path)
    found = change(base, [(0, rounded[0]), (1, rounded[1])], tmp_path / "out")
    whole = change(base, [(1, checkpoints[1][1])], tmp_path / "whole")
    assert all(row["relative"] == 0 for row in found if row["step"] == 0)
    mine = [row["relative"] for row in found if row["step"] == 1]
    assert mine == pytest.approx([row["relative"] for row in whole], rel=0.02)


def test_weight_change_reads_shards(base, checkpoints, tmp_path):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(checkpoints[0][1]).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    whole = change(base, checkpoints[:1], tmp_path / "out")
    assert change(base, [(checkpoints[0][0], sharded)], tmp_path / "out") == whole
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        change(base, [(1, sharded)], tmp_path / "out")


def damage_header(path):
    path.write_bytes(struct.pack("<Q", 20) + b"{not json at all....")


def drop_tensor(path):
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, path)


def reshape_tensor(path):
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 4)
    save_file(tensors, path)


def put_nan(path):
    tensors = load_file(path)
    tensors["model.layers.0.mlp.gate_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: truncate(path, 5), "truncated"),
        (lambda path: truncate(path, path.stat().st_size - 10), "truncated: tensor"),
        (lambda path: path.unlink(), "cannot be read"),
        (damage_header, "header cannot be parsed"),
        (drop_tensor, r"layers\.1\.self_attn\.k_proj\.weight is missing"),
        (reshape_tensor, r"layers\.0\.mlp\.down_proj\.weight has shape \[3, 4\]"),
        (put_nan, r"gate_proj\.weight holds NaN"),
    ],
)
def test_weight_change_names_damage(base, checkpoints, tmp_path, damage, message):
    path = copy(checkpoints[0][1], tmp_path / "damaged")
    damage(path / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        change(base, [(1, path)], tmp_path / "out")
    assert "damaged" in str(caught.value)


def test_weight_change_of_large_values(base, tmp_path):
    """Squares beyond float32's range are summed in float64."""
    path = copy(base, tmp_path / "large")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 1e25
    save_file(tensors, path / "model.safetensors")
    check(change(base, [(1, path)], tmp_path / "out"), base, [(1, path)], 1e-5)


def copy(source, target):
    import shutil

    return shutil.copytree(source, target)


def truncate(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)
