"""Question sets: what is checked, what is laid out, and the real files."""

import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalpel.artifact.identity import sha256_file
from scalpel.config.evaluation import FORMATS as NAMED
from scalpel.config.evaluation import Format
from scalpel.data.tables import first_row, read_rows
from scalpel.errors import UserError
from scalpel.evaluation.formats import FORMATS
from scalpel.evaluation.question_set import open_set
from scalpel.evaluation.questions import prepare

ROWS = {
    "math": {"problem": "What is 1 + 1?", "answer": "2"},
    "aime": {"problem": "What is 1 + 1?", "answer": "2"},
    "gsm8k": {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    "gpqa": {"Question": "q", "Correct Answer": "4"} | {f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)},
    "mmlu": {"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1},
    "mmlu_pro": {"question": "q", "options": ["a", "b"], "answer": "B", "category": "c"},
    "ifeval": {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs__json": "[{}]"},
    "exact_match": {"question": "q", "answer": "four"},
    "choice": {"question": "q", "choices": ["a", "b", "c"], "answer": 2},
    "facts": {"subject": "Rome", "attribute": "Italy", "prompt": "Rome is the capital of"},
}


def test_every_format_of_the_configuration_is_known():
    assert set(FORMATS) == set(Format.__args__) == set(ROWS) and set(NAMED.values()) <= set(FORMATS)


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return path


def laid_out(tmp_path, form, rows, examples=None, suffix=".parquet", **recipe):
    files = {"questions": write(tmp_path / f"given{suffix}", rows)}
    if examples is not None:
        files["examples"] = write(tmp_path / f"shots{suffix}", examples)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    prepare({"format": form} | recipe, files, out)
    return open_set(out)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("form", FORMATS)
def test_files_of_every_kind(form, suffix, tmp_path):
    """csv values are all text, lists in them JSON; what is laid out is the same."""
    row = dict(ROWS[form])
    if suffix == ".csv" and form == "choice":
        row["answer"] = "C"  # as text, 2 may be a choice's index or one of the choices
    rows = [row | {FORMATS[form].question: f"{row[FORMATS[form].question]} {n}"} for n in range(7)]
    found = laid_out(tmp_path, form, rows, examples=[row], suffix=suffix)
    reference = laid_out(
        tmp_path, form, [ROWS[form] | {k: r[k] for k in (FORMATS[form].question,)} for r in rows], [row]
    )
    assert found.rows() == reference.rows() and [r["row"] for r in found.rows()] == list(range(7))
    assert found.format == form and len(found.examples()) == 1 and found.rows(limit=2) == found.rows()[:2]
    text = pq.read_table(found.directory / "text.parquet").column("question").to_pylist()
    assert text == [row[FORMATS[form].question] for row in rows]
    notes = json.loads((found.directory / "notes.json").read_text())
    assert notes == {"format": form, "questions": 7, "examples": 1}


def test_columns_of_other_names(tmp_path):
    rows = [{"q": "What is 1 + 1?", "a": 2, "answer": "not this one", "level": 3}]
    found = laid_out(tmp_path, "math", rows, columns={"problem": "q", "answer": "a"})
    assert found.rows() == [{"problem": "What is 1 + 1?", "solution": r"$\boxed{2}$", "answer": "2", "row": 0}]
    with pytest.raises(UserError, match=r"given\.parquet lacks column 'b' \(it has: a, answer, level, q\)"):
        laid_out(tmp_path, "math", rows, columns={"problem": "b"})
    with pytest.raises(UserError, match="`columns` names 'anwser'; did you mean 'answer'"):
        laid_out(tmp_path, "math", rows, columns={"anwser": "a"})


def test_the_answer_of_a_problem_may_stand_in_its_solution(tmp_path):
    found = laid_out(tmp_path, "math", [{"problem": "p", "solution": r"so \boxed{3}, or \boxed{\frac{1}{2}}"}])
    assert found.rows()[0]["answer"] == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        (1, ["a", "b"], 1), (1.0, ["a", "b"], 1), ("B", ["a", "b"], 1), ("b", ["a", "b"], 1), ("0", ["a", "b"], 0),
        ("two words", ["one", "two words"], 1), ("A", ["A", "B"], 0), (2, ["1", "2", "3"], 2),
        ("2", ["1", "2", "3"], "may mean several"), ("A", ["B", "A"], "may mean several"),
        (2, ["a", "b"], "no index from 0 to 1"), (-1, ["a", "b"], "no index"), ("C", ["a", "b"], "no index"),
        ("c", ["a", "b"], "no index"), (0.5, ["a", "b"], "no index"), (None, ["a", "b"], "is empty"),
        (0, ["a"], "2 to 26"), (0, ["a", ""], "none empty"), (0, "a, b", "needs a list"),
    ],
)  # fmt: skip
def test_the_right_choice_as_index_letter_or_text(answer, choices, index, tmp_path):
    row = {"question": "q", "choices": choices, "answer": answer}
    if isinstance(index, str):
        with pytest.raises(UserError, match=index) as error:
            laid_out(tmp_path, "choice", [row])
        assert "given.parquet, row 0" in str(error.value)
    else:
        assert laid_out(tmp_path, "choice", [row]).rows()[0]["answer"] == index


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("mmlu", {"answer": 4}, "row 1: MMLU rows have 4 choices"),
        ("mmlu", {"choices": ["a", "b"]}, "row 1: MMLU rows have 4 choices"),
        ("mmlu", {"subject": ""}, "row 1: column 'subject' is empty"),
        ("mmlu_pro", {"answer": "K"}, "row 1: the answer 'K' is not the letter of one of its 2 options"),
        ("mmlu_pro", {"answer": "AB"}, "row 1: the answer 'AB' is not the letter of one of its 2 options"),
        ("mmlu_pro", {"question": 7}, "row 1: column 'question' holds 7; it needs text"),
        ("mmlu", {"question": 7}, "row 1: column 'question' holds 7; it needs text"),
        ("gsm8k", {"answer": 12}, "row 1: column 'answer' holds 12; it needs text"),
        ("math", {"answer": [1]}, r"row 1: column 'answer' holds \[1\]; it needs text"),
        ("math", {"problem": "a \ud800"}, "row 1: column 'problem' holds text that is no Unicode"),
        ("ifeval", {"instruction_id_list": ["punctuation:no_coma"]}, "names 'punctuation:no_coma'; did you mean"),
        (
            "ifeval",
            {"kwargs__json": '[{"letter": "a"}]'},
            "the arguments of punctuation:no_comma are letter; it needs none",
        ),
        (
            "ifeval",
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs__json": '[{"num_words": 5}]'},
            "the arguments of length_constraints:number_words are num_words; it needs num_words, relation",
        ),
        (
            "ifeval",
            {
                "instruction_id_list": ["keywords:frequency"],
                "kwargs__json": '[{"keyword": "(", "frequency": 1, "relation": "at least"}]',
            },
            "the arguments of keywords:frequency do not work",
        ),
        (
            "ifeval",
            {
                "instruction_id_list": ["keywords:letter_frequency"],
                "kwargs__json": '[{"letter": "a", "let_frequency": 1, "let_relation": "near"}]',
            },
            "the arguments of keywords:letter_frequency do not work",
        ),
        ("gsm8k", {"answer": "twelve"}, "row 1: the answer does not end in"),
        ("aime", {"answer": "none"}, "row 1: the answer 'none' is not a whole number"),
        ("math", {"answer": ""}, "row 1: column 'answer' is empty"),
        ("math", {"problem": "  "}, "row 1: column 'problem' holds '  '; it needs text"),
        ("ifeval", {"kwargs__json": "{"}, "row 1: kwargs__json is not valid JSON"),
        ("ifeval", {"kwargs__json": "[]"}, "1 instructions but 0 sets"),
        ("exact_match", {"question": None}, "row 1: column 'question' is empty"),
        ("facts", {"subject": "Paris"}, "row 1: the subject 'Paris' does not occur in the prompt"),
        ("gpqa", {"Correct Answer": ""}, "row 1: column 'Correct Answer' is empty"),
    ],
)
def test_bad_rows_are_named(form, change, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        laid_out(tmp_path, form, [ROWS[form], ROWS[form] | change], suffix=".jsonl")
    assert str(tmp_path / "given.jsonl") in str(error.value)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"given\.parquet lacks column 'answer' \(it has: problem\)"):
        laid_out(tmp_path, "math", [{"problem": "p"}])
    path = write(tmp_path / "cut.parquet", [ROWS["math"]] * 50)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut\.parquet cannot be read"):
        prepare({"format": "math"}, {"questions": path}, tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        laid_out(tmp_path, "math", [], suffix=".jsonl")
    for text, words in (('{"a": 1}\n{', "line 2: not valid JSON"), ("[1]", "does not hold JSON objects")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "bad.csv").write_text("a,b\n1\n")
    with pytest.raises(UserError, match="line 2: it has more or fewer fields"):
        read_rows(tmp_path / "bad.csv")
    with pytest.raises(UserError, match=r"bad\.xlsx: \.parquet"):
        read_rows(tmp_path / "bad.xlsx")
    with pytest.raises(UserError, match="missing or damaged"):
        open_set(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    """Excel's UTF-8."""
    for name, text in (("a.csv", "problem,answer\n1 + 1?,2\n"), ("a.jsonl", '{"problem": "1 + 1?", "answer": "2"}\n')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_rows(tmp_path / name) == first_row(tmp_path / name) == [{"problem": "1 + 1?", "answer": "2"}]


def test_a_list_in_an_object_is_not_one_row(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"problem": "x"}]}')
    with pytest.raises(UserError, match="'data' is a list; write that list alone"):
        read_rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("form", "answer"), [("choice", math.nan), ("choice", math.inf), ("choice", "²"), ("mmlu", "²"), ("math", math.nan)]
)
def test_an_answer_that_is_no_number_is_named(form, answer, tmp_path):
    with pytest.raises(UserError, match="row 1"):
        laid_out(tmp_path, form, [ROWS[form], ROWS[form] | {"answer": answer}], suffix=".jsonl")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path):
    digest = sha256_file(write(tmp_path / "given.parquet", [ROWS["math"]]))
    laid_out(tmp_path, "math", [ROWS["math"]], sha256={"questions": digest})
    with pytest.raises(UserError, match=r"given\.parquet changed since the run was planned"):
        laid_out(tmp_path, "math", [ROWS["math"] | {"answer": "3"}], sha256={"questions": digest})


def test_mmlu_pro_without_examples_sets_some_aside(tmp_path):
    rows = [ROWS["mmlu_pro"] | {"question": f"q{n}", "category": f"c{n % 2}", "answer_index": 0} for n in range(16)]
    found = laid_out(tmp_path, "mmlu_pro", rows)
    assert len(found.examples()) == 10 and len(found.rows()) == 6
    assert all(row["answer_index"] == 1 for row in found.rows())  # the letter counts
    assert "first 5 questions of each category" in (found.directory / "notes.json").read_text()
    with pytest.raises(UserError, match="at most 5 questions a category"):
        laid_out(tmp_path, "mmlu_pro", rows[:10])


def test_mmlu_needs_examples_of_every_subject(tmp_path):
    with pytest.raises(UserError, match=r"shots\.parquet has no row of subject 'law'"):
        laid_out(tmp_path, "mmlu", [ROWS["mmlu"], ROWS["mmlu"] | {"subject": "law"}], [ROWS["mmlu"]])


ARC = {  # as AI2's file has it; of the whole set 22 rows have labels 1 to 4
    "id": "q",
    "question": "Which is a fish?",
    "choices": {"text": ["a dog", "the cod", "an owl", "a bee"], "label": ["1", "2", "3", "4"]},
    "answerKey": "2",
}
ARC_COLUMNS = {"choices": "choices.text", "labels": "choices.label", "answer": "answerKey"}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_choices_inside_a_column_with_labels_of_their_own(suffix, tmp_path):
    letters = ARC | {"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    found = laid_out(tmp_path, "choice", [ARC, letters], columns=ARC_COLUMNS, suffix=suffix).rows()
    assert [(row["choices"][row["answer"]], row["answer"]) for row in found] == [("the cod", 1), ("z", 2)]
    with pytest.raises(UserError, match=r"row 0: `labels` holds \['1', '2', '3', '4'\]; .* the answer, '5'"):
        laid_out(tmp_path, "choice", [ARC | {"answerKey": "5"}], columns=ARC_COLUMNS, suffix=suffix)
    with pytest.raises(UserError, match=r"row 0: nothing lies at 'choices\.texts'; correct `columns`"):
        laid_out(tmp_path, "choice", [ARC], columns=ARC_COLUMNS | {"choices": "choices.texts"}, suffix=suffix)
    with pytest.raises(UserError, match="lacks column 'choice' "):
        laid_out(tmp_path, "choice", [ARC], columns=ARC_COLUMNS | {"choices": "choice.text"}, suffix=suffix)


@pytest.mark.parametrize("form", ["mmlu", "mmlu_pro", "choice"])
def test_shuffled_choices_keep_their_answer(form, tmp_path):
    name = "options" if form == "mmlu_pro" else "choices"
    row = ROWS[form] | {name: ["a", "b", "c", "d"]}
    rows = [row | {"question": f"q{n}"} for n in range(200)]
    right = "abcd"["ABCD".index(row["answer"]) if form == "mmlu_pro" else row["answer"]]
    shots = [row] if form == "mmlu_pro" else None
    found = laid_out(tmp_path, form, rows, shots, shuffle=7).rows()
    places = [row["answer_index"] if form == "mmlu_pro" else row["answer"] for row in found]
    assert all(row[name][place] == right for row, place in zip(found, places, strict=True))
    assert all(sorted(row[name]) == ["a", "b", "c", "d"] for row in found)
    assert min(places.count(place) for place in range(4)) > 30, "every place is as likely"
    if form == "mmlu_pro":
        assert [row["answer"] for row in found] == ["ABCD"[place] for place in places]
    assert laid_out(tmp_path, form, rows, shots, shuffle=7).rows() == found
    assert laid_out(tmp_path, form, rows, shots, shuffle=8).rows() != found
    assert laid_out(tmp_path, form, rows, shots).rows()[0][name] == ["a", "b", "c", "d"]


REAL = [
    ("math", {"questions": "math_500/test_000-249.parquet"}, {}, 250),
    ("aime", {"questions": "aime24/test.parquet"}, {}, 30),
    ("aime", {"questions": "aime24/test_with_solution_mas_tts.parquet"}, {}, 30),
    ("math", {"questions": "amc/amc23_40.parquet"}, {}, 40),
    ("gsm8k", {"questions": "gsm8k/test_0000-0659.parquet", "examples": "gsm8k/train.parquet"}, {}, 660),
    ("exact_match", {"questions": "gsm8k/test_0000-0659.parquet"}, {}, 660),
    ("mmlu", {"questions": "mmlu/validation.parquet", "examples": "mmlu/dev.parquet"}, {}, 1531),
    ("mmlu_pro", {"questions": "mmlu_pro/test.parquet"}, {}, 11962),
    ("ifeval", {"questions": "ifeval/input_data.parquet"}, {}, 541),
    ("ifeval", {"questions": "ifeval/input_data.jsonl"}, {}, 541),
    ("choice", {"questions": "arc_challenge/val.parquet", "examples": "arc_challenge/train.parquet"},
     {"question": "query", "answer": "gold"}, 299),
    ("facts", {"questions": "rome_known_1000/known_0000-0999.parquet"}, {}, 1000),
]  # fmt: skip


def test_a_real_file_with_a_row_that_has_no_answer(shared_data, tmp_path):
    with pytest.raises(UserError, match=r"math\.parquet, row 886: column 'answer' is empty"):
        prepare({"format": "math"}, {"questions": shared_data / "deepscaler_train" / "math.parquet"}, tmp_path)


@pytest.mark.parametrize(("form", "files", "columns", "count"), REAL)
def test_real_files(shared_data, form, files, columns, count, tmp_path):
    files = {role: shared_data / path for role, path in files.items()}
    prepare({"format": form, "columns": columns}, files, tmp_path)
    found = open_set(tmp_path)
    assert len(found.rows()) == count == pq.read_metadata(tmp_path / "text.parquet").num_rows
    assert bool(found.examples()) == ("examples" in files or form == "mmlu_pro")
    given = read_rows(files["questions"])
    if form == "choice":
        assert [row["answer"] for row in found.rows()] == [row["gold"] for row in given]
    if form == "aime":
        assert [int(row["answer"]) for row in found.rows()] == [
            int("".join(filter(str.isdigit, str(r["answer"])))) for r in given
        ]
