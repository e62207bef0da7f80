"""Filter and order: every row is accounted for, by the first reason that applies."""

import csv
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalpel.chat import load_tokenizer, token_ids
from scalpel.config.data import FilterRecipe, OrderRecipe
from scalpel.data.filter import Overlap, choose_trace, filter_rows
from scalpel.data.order import write_order
from scalpel.data.sources import last_boxed, open_rows
from scalpel.errors import UserError
from scalpel.grading.grader import Grader

ROOT = Path(__file__).resolve().parent.parent
RECIPE = FilterRecipe(max_tokens=230, decontamination_ngram=6)


def row(problem="Tom has 2 pens and gets 3 more. How many now?", **changes):
    return {
        "uuid": "u",
        "problem": problem,
        "answer": "5",
        "source": "cn_k12",
        "generations": ["<think>\n2 + 3 = 5\n</think>\n\\boxed{5}"],
        "correctness_math_verify": [True],
        "is_reasoning_complete": [True],
    } | changes


def run(tmp_path, tiny_base, rows, recipe=RECIPE, questions=("What is the capital of nowhere at all?",), **source):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"question": list(questions)}), tmp_path / "questions.parquet")
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    opened = open_rows([tmp_path / "rows.parquet"], source.get("columns", {}), source.get("constants", {}), None)
    filter_rows(opened, recipe, tiny_base, [tmp_path / "questions.parquet"], out)
    with open(out / "drops.csv") as file:
        drops = {line["reason"]: int(line["rows"]) for line in csv.DictReader(file)}
    return pq.read_table(out / "kept.parquet").to_pylist(), drops


def test_every_reason_and_a_table_that_adds_up(tiny_base, tmp_path):
    rows = [
        row(),
        row(source="olympiads"),
        row("b", correctness_math_verify=[False]),
        row("c", correctness_math_verify=None),
        row("d", is_reasoning_complete=[False]),
        row("tom has 2 pens   and gets 3 more. how many NOW?"),
        row("Hello: what is the capital of nowhere, at all?"),
        row("Is this it?"),
        row("e", answer=""),
        row("f", generations=["long " * 400]),
    ]
    recipe = RECIPE.model_copy(update={"unparsable_answer": "drop"})
    kept, drops = run(tmp_path, tiny_base, rows, recipe, ("What is the capital of nowhere at all?", "is this IT"))
    assert [item["row"] for item in kept] == [0]
    assert drops == {
        "other_source": 1,
        "no_verified_trace": 2,
        "incomplete_trace": 1,
        "duplicate": 1,
        "evaluation_overlap": 2,
        "special_token": 0,
        "unparsable_answer": 1,
        "prompt_too_long": 0,
        "too_long": 1,
        "kept": 1,
        "read": 10,
    }
    assert sum(count for reason, count in drops.items() if reason != "read") == drops["read"]
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert [item["row"] for item in dropped] == list(range(1, 10))


def test_lengths_are_those_of_the_rendered_conversation(tiny_base, tmp_path):
    kept, _ = run(tmp_path, tiny_base, [row()])
    tokenizer = load_tokenizer(tiny_base)
    assert kept[0]["tokens"] == len(token_ids(tokenizer, kept[0]["problem"], kept[0]["trace"]))
    assert kept[0]["prompt_tokens"] == len(token_ids(tokenizer, kept[0]["problem"]))
    exact = RECIPE.model_copy(update={"max_tokens": kept[0]["tokens"]})
    assert len(run(tmp_path, tiny_base, [row()], exact)[0]) == 1  # at most the cap
    with pytest.raises(UserError, match="kept none of 1 rows; 1 were dropped as 'too_long'"):
        run(tmp_path, tiny_base, [row()], RECIPE.model_copy(update={"max_tokens": kept[0]["tokens"] - 1}))


def test_filter_is_idempotent_and_batches_do_not_matter(tiny_world, tiny_base, tmp_path, monkeypatch):
    rows = pq.read_table(tiny_world / "world" / "rows.parquet").to_pylist()
    kept, _ = run(tmp_path, tiny_base, rows)
    again = [row(k["problem"], answer=k["answer"], generations=[k["trace"]]) for k in kept]
    assert [k["problem"] for k in run(tmp_path, tiny_base, again)[0]] == [k["problem"] for k in kept]
    monkeypatch.setattr("scalpel.data.filter.BATCH_ROWS", 3)
    assert run(tmp_path, tiny_base, rows)[0] == kept


def test_the_first_verified_and_complete_trace_is_chosen():
    item = row(
        generations=["wrong", "cut", "good", "also good"],
        correctness_math_verify=[False, True, True, True],
        is_reasoning_complete=[True, False, True, True],
    )
    assert choose_trace(item, 0, RECIPE) == (None, "good")


@pytest.mark.parametrize(
    ("verified_by", "chosen"),
    [("math_verify", "b"), ("math_verify_or_llama", "a"), ("math_verify_and_llama", "c"), ("none", "a")],
)
def test_who_must_have_verified_a_trace(verified_by, chosen):
    item = row(
        generations=["a", "b", "c"],
        correctness_math_verify=[False, True, True],
        correctness_llama=[True, False, True],
        is_reasoning_complete=[True, True, True],
    )
    assert choose_trace(item, 0, FilterRecipe(verified_by=verified_by)) == (None, chosen)


def test_the_authors_trace_and_gold_answer(tiny_base, tmp_path):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "So it is 5."}]
    rows = [
        row(solution="2 + 3 = $5$, so $\\boxed{5}$.", messages=turns),
        row("Another one?", solution="?", messages=[]),
    ]
    recipe = RECIPE.model_copy(update={"trace": "messages", "gold": "solution"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"question": ["unlike"]}), tmp_path / "questions.parquet")
    filter_rows(
        open_rows([tmp_path / "rows.parquet"], {}, {}, None, recipe.columns),
        recipe, tiny_base, [tmp_path / "questions.parquet"], tmp_path,
    )  # fmt: skip
    (kept,) = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    assert kept["trace"] == "So it is 5." and kept["answer"] == rows[0]["solution"]
    with pytest.raises(UserError, match="lacks column 'messages'"):
        constants = {"source": "s", "correctness_math_verify": True, "is_reasoning_complete": True}
        open_rows([tmp_path / "kept.parquet"], {"generations": "trace"}, constants, None, ("messages",))


def test_every_check_of_rows_can_be_switched_off(tiny_base, tmp_path):
    """What the authors' GRPO was given: every row of the source, as it is."""
    rows = [
        row(),
        row(),
        row("What is the capital of nowhere at all?"),
        row("Long?", generations=["long " * 300]),
        row("Vague?", answer=""),
        row("Cut?", is_reasoning_complete=[False]),
        row("Wrong?", correctness_math_verify=[False]),
    ]
    everything = FilterRecipe(
        max_tokens=None, decontamination_ngram=None, verified_by="none", require_complete=False,
        unparsable_answer="keep", duplicates="keep",
    )  # fmt: skip
    kept, drops = run(tmp_path, tiny_base, rows, everything)
    assert [item["row"] for item in kept] == list(range(7)) and drops["kept"] == 7
    kept, drops = run(tmp_path, tiny_base, rows, RECIPE.model_copy(update={"unparsable_answer": "drop"}))
    assert [item["row"] for item in kept] == [0]


def test_the_first_rows_that_pass_may_be_enough(tiny_base, tmp_path, monkeypatch):
    """Whatever the batches; the others are counted as such, and without the option there is no such reason."""
    monkeypatch.setattr("scalpel.data.filter.BATCH_ROWS", 4)
    rows = [row(f"Tom has {n} pens. How many?", uuid=str(n), source="x" if n % 3 == 0 else "cn_k12") for n in range(12)]
    kept, drops = run(tmp_path, tiny_base, rows, RECIPE.model_copy(update={"most_rows": 5}))
    assert [item["row"] for item in kept] == [1, 2, 4, 5, 7]
    assert drops["beyond_most_rows"] == 3 and drops["other_source"] == 4 and drops["kept"] == 5
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert [item["row"] for item in dropped] == [0, 3, 6, 8, 9, 10, 11]
    assert "beyond_most_rows" not in run(tmp_path, tiny_base, rows)[1]


def test_overlap_equals_a_brute_force_search():
    rng = np.random.default_rng(0)
    questions = [" ".join(rng.choice(list("abcd"), rng.integers(1, 9))) for _ in range(40)]
    overlap = Overlap(4)
    for question in questions:
        overlap.add(question)
    for _ in range(200):
        text = " ".join(rng.choice(list("abcd"), rng.integers(1, 9)))
        grams = lambda t: {tuple(t.split()[i : i + 4]) for i in range(len(t.split()) - 3)}  # noqa: E731
        expected = any(grams(text) & grams(q) or (len(q.split()) < 4 and q == text) for q in questions)
        assert overlap.hit(text) == expected


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{k: v for k, v in row().items() if k != "answer"}], "lacks column 'answer'"),
        ([row(answer="")], "no answer can be read in column 'answer'"),
        ([row(is_reasoning_complete=[True, False])], "they must agree"),
        ([row(problem=" ")], "column 'problem' is empty"),
    ],
)
def test_bad_rows_are_named(rows, sentence, tiny_base, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, tiny_base, rows)


def test_truncated_parquet_is_named(tiny_base, tmp_path):
    run(tmp_path, tiny_base, [row()])
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"rows\.parquet is not a readable parquet file"):
        open_rows([tmp_path / "rows.parquet"], {}, {}, None)


def test_files_that_do_not_all_have_a_column_are_refused(tmp_path):
    """In either order: one file's rows would be numbered anew, or lack it."""
    rows = {name: [value] for name, value in row().items() if name != "uuid"}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(pa.table(rows), files[0])
    pq.write_table(pa.table(rows | {"uuid": ["u"]}), files[1])
    for given in (files, files[::-1]):
        with pytest.raises(UserError, match="one has the column 'uuid' and the other does not"):
            open_rows(given, {}, {}, None)


def test_other_columns_can_stand_for_the_wanted_ones(tiny_base, tmp_path):
    rows = [{"q": "What is 2 and 3?", "trace": "2 + 3 = 5", "final": "5"}]
    kept, _ = run(
        tmp_path,
        tiny_base,
        rows,
        columns={"problem": "q", "generations": "trace", "answer": "final"},
        constants={"source": "cn_k12", "correctness_math_verify": True, "is_reasoning_complete": True},
    )
    assert kept[0]["trace"] == "2 + 3 = 5" and kept[0]["uuid"] == "row-0"


def test_order_is_a_permutation_per_epoch(tmp_path):
    pq.write_table(pa.table({"row": [5, 9, 2, 7]}), tmp_path / "kept.parquet")
    write_order(tmp_path / "kept.parquet", OrderRecipe(seed=1, epochs=5), tmp_path)
    table = pq.read_table(tmp_path / "order.parquet").to_pylist()
    assert [item["position"] for item in table] == list(range(20))
    epochs = [[item["row"] for item in table if item["epoch"] == epoch] for epoch in range(5)]
    assert all(sorted(epoch) == [2, 5, 7, 9] for epoch in epochs) and len(set(map(tuple, epochs))) > 1


def test_last_boxed():
    assert last_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{\{1\}}") == r"\{1\}" and last_boxed("none") is None and last_boxed(r"\boxed{1") is None


# ---------------------------------------------------------------- answers


def test_grading():
    pairs = [
        ("12", "<think>\n5 + 7 = 12\n</think>\n<answer>\n12\n</answer>", True),
        ("12", "<answer>12</answer>", True),
        ("12", "$12$", True),
        ("12", r"so \boxed{12}", True),
        ("12", r"12, no, \boxed{13}", False),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"(3,\frac{\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}", True),
        ("12", "", False),
        ("", "12", None),
    ]
    with Grader() as grader:
        assert grader.grade_many([(gold, text) for gold, text, _ in pairs]) == [verdict for *_, verdict in pairs]


def test_a_hostile_answer_is_wrong_and_harms_no_other():
    with Grader(seconds=1.0) as grader:
        texts = [r"\boxed{1}", r"\boxed{9^{9^{9^9}}}", r"\boxed{1}", "(" * 100_000, r"\boxed{1}"]
        assert grader.grade_many([("1", text) for text in texts]) == [True, False, True, False, True]


def test_agreement_with_published_scores(shared_data):
    """Scored generations of real models; their own graders differ from math-verify on a few."""
    total = agreed = 0
    with Grader() as grader:
        for path in sorted((shared_data / "scored_generations_sky").glob("*amc23.parquet")):
            rows = pq.read_table(path).to_pylist()
            verdicts = grader.grade_many([(r["gt"], r["code"][0]) for r in rows])
            total += len(rows)
            agreed += sum(bool(v) == bool(r["score"][0]) for v, r in zip(verdicts, rows, strict=True))
    assert total == 120 and agreed / total > 0.97


def test_rendered_ids_are_the_authors(shared_data):
    """Real rows as the paper's authors rendered them, compared as text and as OLMo-2 token ids."""
    from transformers import PreTrainedTokenizerFast

    from scalpel.chat import conversation, template_text

    folder = shared_data / "olmo2_tokenizer"
    end, pad = "<|endoftext|>", "<|pad|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=end, eos_token=end, pad_token=pad
    )
    ours = template_text("scalpel_vs_hammer")
    theirs = (folder / "chat_template_paper1_training.jinja").read_text()
    messages = pq.read_table(shared_data / "openr1_math_real" / "default_row0_messages.parquet").to_pylist()[0][
        "messages"
    ]
    question, trace = (message["content"] for message in messages)
    for turns in (
        conversation(question, trace),
        conversation(question),
        [{"role": "system", "content": "s"}, *messages],
    ):
        prompt = turns[-1]["role"] == "user"
        texts = [
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, chat_template=template)
            for template in (ours, theirs)
        ]
        assert texts[0] == texts[1]
    tokenizer.chat_template = ours
    assert token_ids(tokenizer, question, trace)[-1] == 100257


@pytest.mark.parametrize("row_group", [100, 10_000], ids=["many row groups", "one row group"])
def test_rows_are_streamed(row_group, tmp_path):
    """What Arrow holds while rows are read does not grow with the file, however the file is laid out."""
    path, noise, held = tmp_path / "rows.parquet", np.random.default_rng(0), []
    for count in (1500, 4500):
        rows = [row(f"question {i}", generations=[noise.bytes(10_000).hex()]) for i in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group, use_dictionary=False)
        del rows
        before = pa.total_allocated_bytes()
        held.append(max(pa.total_allocated_bytes() - before for _ in open_rows([path], {}, {}, None)))
    assert held[1] < 1.2 * held[0], held


def test_real_traces_through_the_filter(shared_data, tiny_base, tmp_path):
    """Real R1 traces on GSM8K problems are rendered, measured and kept whole."""
    path = shared_data / "r1_traces_camel" / "traces_gsm8k.parquet"
    constants = {"source": "cn_k12", "correctness_math_verify": True, "is_reasoning_complete": True}
    rows = open_rows([path], {"generations": "final_trace", "uuid": "id"}, constants, "solution")
    pq.write_table(
        pq.read_table(path, columns=["problem"]).slice(0, 1).rename_columns(["question"]), tmp_path / "q.parquet"
    )
    filter_rows(
        rows, FilterRecipe(max_tokens=100_000, unparsable_answer="drop"), tiny_base, [tmp_path / "q.parquet"], tmp_path
    )
    kept = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    traces = {row["final_trace"] for row in pq.read_table(path).to_pylist()}
    dropped = pq.read_table(tmp_path / "dropped.parquet").to_pylist()
    assert len(kept) + len(dropped) == 14 and {row["trace"] for row in kept} <= traces
    assert "evaluation_overlap" in {row["reason"] for row in dropped}


# ---------------------------------------------------------------- rows from others


def planted(tokenizer) -> list[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted({*tokenizer.all_special_tokens, *special, "<|user|>", "<|assistant|>"})


def test_rows_that_hold_a_special_token_are_dropped_and_counted(tiny_base, tmp_path):
    """In the problem or in the trace; the think and answer tags are ordinary text."""
    tokenizer = load_tokenizer(tiny_base)
    tokens = planted(tokenizer)
    assert tokenizer.eos_token in tokens and len(tokens) >= 4
    rows = [row()]
    for number, token in enumerate(tokens):
        rows.append(row(f"How many pens are {number} pens?{token}Say 7."))
        rows.append(row(f"And how many are {number}?", generations=[f"<think>\n5\n</think>\n\\boxed{{5}}{token}more"]))
    kept, drops = run(tmp_path, tiny_base, rows)
    assert [item["row"] for item in kept] == [0] and drops["special_token"] == 2 * len(tokens)
    ids = token_ids(tokenizer, kept[0]["problem"], kept[0]["trace"])
    assert ids.count(tokenizer.eos_token_id) == token_ids(tokenizer, "?", "!").count(tokenizer.eos_token_id)


def test_special_tokens_of_a_real_tokenizer_are_known(shared_data, tiny_base):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from scalpel.chat import control_text

    folder = shared_data / "olmo2_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    real = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=real, eos_token="<|endoftext|>", pad_token="<|pad|>")
    tokenizer.chat_template = (folder / "chat_template_paper1_training.jinja").read_text()
    control = control_text(tokenizer)
    for token in planted(tokenizer):
        assert control.search(f"a{token}b"), token
    assert not control.search("<think>\na < b | c > d\n</think>\n<answer>\n<|\n</answer>")


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("answer", pa.array([True]), "column 'answer' holds values of type bool; it needs text"),
        ("problem", pa.array([7]), "column 'problem' holds"),
        (
            "generations",
            pa.array([[1]]),
            r"column 'generations' holds values of type list<.*int64>; it needs text, or a",
        ),
        ("generations", pa.array([3]), "it needs text, or a list of it"),
        ("correctness_math_verify", pa.array([["false"]]), "it needs true or false, or a list of it"),
        ("correctness_math_verify", pa.array(["false"]), "it needs true or false, or a list of it"),
        ("is_reasoning_complete", pa.array([[1]]), "it needs true or false"),
    ],
)
def test_values_of_another_type_are_refused(column, values, words, tiny_base, tmp_path):
    table = pa.Table.from_pylist([row()])
    table = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=f"rows.parquet, row 0 and all others: .*{words}"):
        open_rows([tmp_path / "rows.parquet"], {}, {}, None)


@pytest.mark.parametrize("values", [pa.array([5]), pa.array([5.0])])
def test_numbers_may_stand_for_answers(values, tiny_base, tmp_path):
    table = pa.Table.from_pylist([row(uuid=7)])
    pq.write_table(
        table.set_column(table.schema.get_field_index("answer"), "answer", values), tmp_path / "rows.parquet"
    )
    pq.write_table(pa.table({"question": ["unlike"]}), tmp_path / "questions.parquet")
    opened = open_rows([tmp_path / "rows.parquet"], {}, {}, None)
    filter_rows(opened, RECIPE, tiny_base, [tmp_path / "questions.parquet"], tmp_path)
    (kept,) = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    with Grader() as grader:
        assert grader.grade_many([(kept["answer"], "<answer>\n5\n</answer>")]) == [True]
    assert kept["uuid"] == "7"


def test_constants_are_of_the_columns_type(tmp_path):
    pq.write_table(pa.Table.from_pylist([row()]), tmp_path / "rows.parquet")
    with pytest.raises(
        UserError, match=r"source.constants: correctness_math_verify is 'false'; it needs true or false"
    ):
        open_rows([tmp_path / "rows.parquet"], {}, {"correctness_math_verify": "false"}, None)


def test_text_that_is_no_utf8_is_named(tmp_path):
    table = pa.Table.from_pylist([row(), row("b")])
    raw = pa.array([b"good", b"\xff\xfe bad"], pa.binary())
    broken = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(
        table.set_column(table.schema.get_field_index("answer"), "answer", broken), tmp_path / "rows.parquet"
    )
    with pytest.raises(UserError, match=r"rows.parquet, row 1: column 'answer' is not valid UTF-8"):
        list(open_rows([tmp_path / "rows.parquet"], {}, {}, None))


# ---------------------------------------------------------------- values inside columns

OF_46K = {
    "problem": "prompt[-1].content", "generations": "target[0].content", "answer": "reward_model.ground_truth",
    "source": "data_source", "uuid": "extra_info.index",
}  # fmt: skip
TRUE = {"correctness_math_verify": True, "is_reasoning_complete": True}


def rows_of_46k(path: Path, count: int = 600) -> None:
    """Under the columns of Openr1-Math-46k-8192, more than one batch of them."""
    rows = [
        {
            "data_source": "openr1",
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"What is {n} + 1?"}],
            "target": [{"role": "assistant", "content": f"It is {n + 1}."}],
            "ability": "math",
            "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(count)
    ]
    for row in rows[7:8]:
        row["target"] = []
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_rows_of_the_second_paper_are_read_as_they_are(tmp_path):
    page = (ROOT / "docs" / "real-data.md").read_text().replace("\n", " ")
    written = re.search(r"`columns: (\{problem: [^`]*\})`", page)[1]
    assert yaml.safe_load(written) == OF_46K, "the page says what is tested"
    rows_of_46k(tmp_path / "rows.parquet")
    opened = open_rows([tmp_path / "rows.parquet"], OF_46K, TRUE, None)
    read = [row for _, row in opened]
    assert len(read) == opened.total == 600
    for n, row in enumerate(read):
        assert row["problem"] == f"What is {n} + 1?" and row["answer"] == str(n + 1) and row["uuid"] == str(n)
        assert row["generations"] == ([f"It is {n + 1}."] if n != 7 else [None]) and row["source"] == "openr1"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("prompt.content", "nothing lies at 'prompt.content'"),
        ("reward_model[0]", "nothing lies at 'reward_model\\[0\\]'"),
        ("reward_model.truth", "nothing lies at 'reward_model.truth'"),
        ("reward_model", "holds values of type struct"),
        ("promt[0].content", "lacks column 'promt\\[0\\].content'"),
    ],
)
def test_a_path_to_nothing_is_refused_when_the_file_is_opened(path, sentence, tmp_path):
    rows_of_46k(tmp_path / "rows.parquet", 2)
    with pytest.raises(UserError, match=sentence):
        open_rows([tmp_path / "rows.parquet"], OF_46K | {"problem": path}, TRUE, None)


def test_a_column_with_a_dot_in_its_name_is_itself(tmp_path):
    row = {"problem": "p", "final.answer": "7", "final": {"answer": "8"}, "source": "s", "generations": ["g"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    ((_, read),) = open_rows([tmp_path / "rows.parquet"], {"answer": "final.answer"}, TRUE, None)
    assert read["answer"] == "7"
