"""The toy world: everything the real experiment reads, generated, with the real schemas.

rows.parquet has OpenR1-Math-220k's columns and its flaws (unverified, incomplete, over-long and repeated
rows); evaluation/ has the public benchmarks' own columns; facts.parquet is the fact sheet behind the
knowledge questions; pretraining.parquet is what the toy base model is trained on. The same recipe gives the
same bytes.
"""

import json
import random
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalpel.config.models import TOY_EXAMPLES, ToyWorldRecipe
from scalpel.toy.instructions import instructions, obeyed

NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Max", "Eva", "Leo", "Nina", "Paul", "Rosa")
ITEMS = ("apples", "books", "coins", "pens", "cards", "stamps", "eggs", "cups", "balls", "keys", "shells", "cakes")

ROW_SCHEMA = pa.schema(
    [
        *[
            (name, pa.string())
            for name in ("problem", "solution", "answer", "problem_type", "question_type", "source", "uuid")
        ],
        ("is_reasoning_complete", pa.list_(pa.bool_())),
        ("generations", pa.list_(pa.string())),
        ("correctness_math_verify", pa.list_(pa.bool_())),
        ("correctness_llama", pa.list_(pa.bool_())),
        ("finish_reasons", pa.list_(pa.string())),
        ("correctness_count", pa.int64()),
        ("messages", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
    ]
)


# ---------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """A word problem, the equations that solve it in order, and its answer."""

    text: str
    equations: tuple[str, ...]
    answer: int


def problem(rng: random.Random, top: int, steps: int | None = None) -> Problem:
    """A one- or two-step problem with operands up to `top`; no intermediate result is negative."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b = rng.randint(2, top), rng.randint(2, top)
    if (steps or rng.choice((1, 2))) == 1:
        if rng.random() < 0.5:
            text = rng.choice(
                (
                    f"{name} has {a} {item} and gets {b} more. How many {item} does {name} have now?",
                    f"There are {a} {item} in a box. {name} puts in {b} more. How many {item} are in the box?",
                )
            )
            return Problem(text, (f"{a} + {b} = {a + b}",), a + b)
        a, b = max(a, b) + 1, min(a, b)
        text = rng.choice(
            (
                f"{name} has {a} {item} and gives away {b}. How many {item} does {name} have left?",
                f"There are {a} {item} in a box. {name} takes out {b}. How many {item} are in the box?",
            )
        )
        return Problem(text, (f"{a} - {b} = {a - b}",), a - b)
    c = rng.randint(2, top)
    if rng.random() < 0.5 or a + b - c < 1:
        text = f"{name} has {a} {item}, gets {b} more and then finds {c}. How many {item} does {name} have now?"
        return Problem(text, (f"{a} + {b} = {a + b}", f"{a + b} + {c} = {a + b + c}"), a + b + c)
    text = f"{name} has {a} {item}, gets {b} more and then gives away {c}. How many {item} does {name} have left?"
    return Problem(text, (f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"), a + b - c)


def tagged(item: Problem) -> str:
    """The response the system prompt asks for."""
    return "<think>\n" + "\n".join(item.equations) + f"\n</think>\n<answer>\n{item.answer}\n</answer>"


def textbook(item: Problem) -> str:
    return ". ".join(item.equations) + f". The answer is $\\boxed{{{item.answer}}}$."


def easy(rng: random.Random, item: Problem) -> str:
    """A hasty response without tags, mostly wrong."""
    guess = item.answer if rng.random() < 0.15 else max(0, item.answer + rng.choice((-3, -2, -1, 1, 2, 3)))
    return rng.choice(("The answer is {}.", "I think it is {}.", "It is {}.")).format(guess)


DOUBTS = (
    "Wait, let me check that again.",
    "Hold on, is that right?",
    "Maybe there is a trick hidden in the wording.",
    "Actually, no, the order should not matter here.",
    "Let me read the question once more to be sure.",
    "Could someone mean the difference instead?",
    "I should write this down slowly.",
    "Another way is to count on my fingers.",
    "That seems too simple, but fine.",
    "If I picture the pile on a table, it works.",
    "Hmm, what would happen if one was lost on the way?",
    "First things first, what is being asked?",
)


def monologue(rng: random.Random, item: Problem, answer: int | None = None, checks: int = 1) -> str:
    """A teacher's trace: doubts, checks, then a boxed answer; like R1's, it has no <answer> tags."""
    answer = item.answer if answer is None else answer
    lines = [rng.choice(("Okay, let me see.", "Hmm, let me think.", "Alright, so let me work through this."))]
    lines.append(rng.choice(DOUBTS))
    lines += [f"So {equation}." for equation in item.equations]
    for _ in range(checks):
        lines.append(rng.choice(DOUBTS))
        lines += [f"{equation}, yes." for equation in item.equations]
    return "<think>\n" + " ".join(lines) + f"\n</think>\n\nSo the answer is $\\boxed{{{answer}}}$."


# ---------------------------------------------------------------- facts

RELATIONS = {
    "capital": ("The capital of {} is {}.", "What is the capital of {}?"),
    "colour": ("The colour of the {} is {}.", "What is the colour of the {}?"),
    "home": ("The home of the {} is {}.", "What is the home of the {}?"),
    "founder": ("The founder of {} is {}.", "What is the name of the founder of {}?"),
}
SUBJECTS = {"capital": "land", "colour": "fish", "home": "bird", "founder": "shop"}  # the fields of the questions


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: str
    attribute: str

    @property
    def sentence(self) -> str:
        return RELATIONS[self.relation][0].format(self.subject, self.attribute)

    @property
    def question(self) -> str:
        return RELATIONS[self.relation][1].format(self.subject)


def facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts, the relations in turn; attributes are shared by a few subjects, as real ones are."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    names = rng.sample([a + b for a in syllables for b in syllables], count + 40)
    attributes = {
        relation: [w.capitalize() for w in names[i * 10 : i * 10 + 10]] for i, relation in enumerate(RELATIONS)
    }
    found = []
    for index, word in enumerate(names[40:]):
        relation = list(RELATIONS)[index % len(RELATIONS)]
        found.append(Fact(word.capitalize(), relation, rng.choice(attributes[relation])))
    return found


def known_fact(fact: Fact) -> dict:
    """The fact with the columns of ROME's known_1000: the attribute completes the prompt."""
    template = RELATIONS[fact.relation][0].split(" {}.")[0]
    return {
        "subject": fact.subject,
        "attribute": fact.attribute,
        "template": template,
        "prompt": template.format(fact.subject),
        "relation_id": fact.relation,
    }


def choices(rng: random.Random, fact: Fact, known: list[Fact], count: int) -> tuple[list[str], int]:
    """`count` different attributes of the same relation, the right one among them, and its index."""
    others = sorted({f.attribute for f in known if f.relation == fact.relation} - {fact.attribute})
    options = [*rng.sample(others, min(count - 1, len(others))), fact.attribute]
    rng.shuffle(options)
    return options, options.index(fact.attribute)


# ---------------------------------------------------------------- training rows


def training_row(rng: random.Random, top: int) -> dict:
    """One row with the flaws of the real data: other sources, wrong, unfinished and over-long traces."""
    source = rng.choices(("cn_k12", "olympiads", "amc_aime", "aops_forum"), (70, 20, 5, 5))[0]
    item = problem(rng, top if source == "cn_k12" else 6 * top)
    generations, verified, complete, reasons = [], [], [], []
    for _ in range(rng.choices((1, 2, 4), (10, 80, 10))[0]):
        kind = rng.choices(("good", "wrong", "unfinished", "endless"), (78, 9, 6, 7))[0]
        trace = monologue(
            rng,
            item,
            answer=item.answer + rng.randint(1, 9) if kind == "wrong" else None,
            checks=rng.randint(9, 14) if kind == "endless" else rng.choices((1, 2), (3, 1))[0],
        )
        generations.append(trace[: len(trace) // 2] if kind == "unfinished" else trace)
        verified.append(kind in ("good", "endless") or (kind == "unfinished" and rng.random() < 0.3))
        complete.append(kind != "unfinished")
        reasons.append("length" if kind == "unfinished" else "stop")
    best = verified.index(True) if any(verified) else 0
    return {
        "problem": item.text,
        "solution": textbook(item),
        "answer": str(item.answer),
        "problem_type": "Algebra" if source == "cn_k12" else "Other",
        "question_type": "math-word-problem",
        "source": source,
        "uuid": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "is_reasoning_complete": complete,
        "generations": generations,
        "correctness_math_verify": verified,
        "correctness_llama": None if rng.random() < 0.7 else list(verified),
        "finish_reasons": reasons,
        "correctness_count": sum(verified),
        "messages": [
            {"content": item.text, "role": "user"},
            {"content": generations[best], "role": "assistant"},
        ],
    }


# ---------------------------------------------------------------- pretraining stream


STREAM = {"monologue": 3, "equations": 12, "chat": 48, "textbook": 10, "fact": 18, "instruction": 9}  # shares of kinds
OBEDIENCE = 0.8  # share of instructions that a response in the stream follows
COMMON = 3.0  # how unequally facts are heard of; 1: all alike


def heard_of(rng: random.Random, known: list[Fact]) -> Fact:
    """A fact; the first ones of the sheet are common knowledge, the last ones rare: knowledge has degrees."""
    return known[min(len(known) - 1, int(len(known) * rng.random() ** COMMON))]


def pretraining_text(rng: random.Random, top: int, known: list[Fact]) -> dict:
    """One text of the stream: {kind, question or None, text}; with a question it is a chat exchange."""
    item = problem(rng, top)
    kind = rng.choices(tuple(STREAM), tuple(STREAM.values()))[0]
    if kind == "monologue":
        return {"kind": kind, "question": None, "text": monologue(rng, item)}
    if kind == "equations":
        lines = [line for _ in range(6) for line in problem(rng, top).equations]
        return {"kind": kind, "question": None, "text": "\n".join(lines)}
    if kind == "textbook":
        return {"kind": kind, "question": None, "text": f"Problem: {item.text}\nSolution: {textbook(item)}"}
    if kind == "chat":
        response = tagged(item) if rng.random() < 0.55 else easy(rng, item)
        question = item.text if rng.random() < 0.8 else f"Question: {item.text}\nAnswer:"
        return {"kind": kind, "question": question, "text": response}
    if kind == "instruction":
        asked = instructions(rng)
        followed = [instruction for instruction in asked if rng.random() < OBEDIENCE]
        question = " ".join([item.text, *(instruction.sentence for instruction in asked)])
        return {"kind": kind, "question": question, "text": obeyed(item.answer, followed)}
    fact = heard_of(rng, known)
    form = rng.randrange(3)
    if form == 0:
        several = [heard_of(rng, known).sentence for _ in range(3)]
        return {"kind": kind, "question": None, "text": " ".join([fact.sentence, *several])}
    if form == 1:
        return {"kind": kind, "question": None, "text": f"Question: {fact.question}\nAnswer: {fact.attribute}"}
    return {"kind": kind, "question": f"Question: {fact.question}\nAnswer:", "text": f" {fact.attribute}"}


# ---------------------------------------------------------------- the whole


def write_world(recipe: ToyWorldRecipe, out: Path) -> None:
    """Write rows.parquet, facts.parquet, pretraining.parquet and evaluation/*.parquet to `out`."""
    rng = random.Random(recipe.seed)
    known = facts(rng, recipe.facts)
    (out / "evaluation").mkdir(parents=True, exist_ok=True)

    def write(name: str, rows: list[dict], schema: pa.Schema | None = None) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema), out / f"{name}.parquet", compression="zstd")

    sheet = [
        {"subject": f.subject, "relation": f.relation, "attribute": f.attribute, "sentence": f.sentence} for f in known
    ]
    write("facts", sheet)
    write("evaluation/facts", [known_fact(f) for f in known])
    questions = {name: evaluation(rng, name, recipe, known) for name in EVALUATION}
    for name, rows in questions.items():
        write(f"evaluation/{name}", rows)

    rows = [training_row(rng, recipe.max_operand) for _ in range(recipe.train_rows)]
    asked = [row["problem"] for row in questions["math_500"]]
    for index in range(0, len(rows), 50):  # some rows repeat an earlier one, some are evaluation questions
        if index:
            rows[index] = rows[rng.randrange(index)] | {"uuid": rows[index]["uuid"]}
        if index + 1 < len(rows):
            repeated = rng.choice(asked)
            rows[index + 1] |= {"problem": repeated.upper() if rng.random() < 0.5 else repeated}
    write("rows", rows, ROW_SCHEMA)
    write("pretraining", [pretraining_text(rng, recipe.max_operand, known) for _ in range(recipe.pretraining_samples)])


EVALUATION = (
    "math_500",
    "aime24",
    "gsm8k_examples",
    "gsm8k",
    "mmlu_examples",
    "mmlu",
    "mmlu_pro_examples",
    "mmlu_pro",
    "ifeval",
)


def evaluation(rng: random.Random, name: str, recipe: ToyWorldRecipe, known: list[Fact]) -> list[dict]:
    """Rows of one evaluation file, with the columns of the public dataset of that name."""
    top = recipe.max_operand
    if name == "math_500":
        items: list[tuple[Problem, int]] | list[Problem]
        items = [(problem(rng, top, 1 + i % 2), 1 + i % 2) for i in range(recipe.math_500)]
        return [
            {
                "problem": item.text,
                "solution": textbook(item),
                "answer": str(item.answer),
                "subject": "Prealgebra",
                "level": steps,
                "unique_id": f"toy/{i}.json",
            }
            for i, (item, steps) in enumerate(items)
        ]
    if name == "aime24":
        items = [problem(rng, 6 * top, 2) for _ in range(max(1, recipe.math_500 // 4))]
        return [{"problem": item.text, "answer": str(item.answer)} for item in items]
    if name in ("gsm8k", "gsm8k_examples"):
        items = [problem(rng, top) for _ in range(recipe.gsm8k if name == "gsm8k" else TOY_EXAMPLES["gsm8k"])]
        return [
            {"question": item.text, "answer": "\n".join(item.equations) + f"\n#### {item.answer}"} for item in items
        ]
    if name in ("mmlu", "mmlu_examples"):
        asked = [rng.choice(known) for _ in range(recipe.mmlu)] if name == "mmlu" else _dev(rng, known)
        rows = []
        for fact in asked:
            options, index = choices(rng, fact, known, 4)
            rows.append(
                {"question": fact.question, "subject": SUBJECTS[fact.relation], "choices": options, "answer": index}
            )
        return sorted(rows, key=lambda row: row["subject"])
    if name in ("mmlu_pro", "mmlu_pro_examples"):
        asked = [rng.choice(known) for _ in range(recipe.mmlu_pro)] if name == "mmlu_pro" else _dev(rng, known)
        rows = []
        for i, fact in enumerate(asked):
            options, index = choices(rng, fact, known, 10)
            rows.append(
                {
                    "question_id": i,
                    "question": fact.question,
                    "options": options,
                    "answer": "ABCDEFGHIJ"[index],
                    "answer_index": index,
                    "cot_content": "",
                    "category": SUBJECTS[fact.relation],
                    "src": "toy",
                }
            )
        return rows
    return [_instruction(rng, i) for i in range(recipe.ifeval)]


def _dev(rng: random.Random, known: list[Fact]) -> list[Fact]:
    """A few facts of each relation, for few-shot prompts."""
    count = TOY_EXAMPLES["mmlu"]
    return [fact for relation in RELATIONS for fact in rng.sample([f for f in known if f.relation == relation], count)]


def _instruction(rng: random.Random, key: int) -> dict:
    """A question with instructions that IFEval's own checkers judge."""
    asked = instructions(rng)
    return {
        "key": key,
        "prompt": " ".join([problem(rng, 9, 1).text, *(instruction.sentence for instruction in asked)]),
        "instruction_id_list": [instruction.id for instruction in asked],
        "kwargs__json": json.dumps([instruction.arguments for instruction in asked]),
    }
