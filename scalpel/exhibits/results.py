"""Results read back for exhibits, claims and the report: every seed and shard a row of its own, none left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalpel.artifact.files import below
from scalpel.config.load import nearest
from scalpel.errors import UserError
from scalpel.exhibits import axis, files
from scalpel.exhibits.result import Result
from scalpel.exhibits.uncertainty import question_error

if TYPE_CHECKING:
    import pandas as pd

TASKS = {  # how people call them; other tasks are called by their own names
    "aime24": "AIME24",
    "aime25": "AIME25",
    "math_500": "MATH-500",
    "gsm8k": "GSM8k",
    "gpqa_diamond": "GPQA Diamond",
    "mmlu": "MMLU",
    "mmlu_pro": "MMLU-Pro",
    "ifeval": "IFEval",
    "ifeval_prompt": "IFEval, prompts",
    "ifeval_instruction": "IFEval, instructions",
}
PROJECTIONS = {  # in the order of a layer, with the names people use
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "MLP gate",
    "up_proj": "MLP up",
    "down_proj": "MLP down",
}
LOG = "log.parquet"  # of train and given results: one row per optimizer step
WHOSE = ["run", "seed", "part", "shard", "reference"]  # columns that every frame begins with


class Results:
    """The results an exhibit shows. `published`: the study's published numbers, for kinds with PUBLISHED."""

    def __init__(self, found: Sequence[Result], published: dict | None = None):
        self.found, self.published = list(found), published or {}

    @classmethod
    def of_entries(cls, entries: Iterable[dict], results: Path, published: dict | None = None) -> Results:
        """From the entries of an exhibit's recipe, whose directories lie below `results`."""
        chains = [tuple(below(results, directory) for directory in entry["chain"]) for entry in entries]
        found = [
            Result(**entry | {"step": below(results, entry["step"]), "chain": chain})
            for entry, chain in zip(entries, chains, strict=True)
        ]
        return cls(found, published)

    @property
    def runs(self) -> list[str]:
        """In the order in which they are shown."""
        return list(dict.fromkeys(result.run for result in self.found))

    def of(self, *stages: str) -> list[Result]:
        return [result for result in self.found if result.stage in stages]

    def only(self, wanted: Callable[[Result], bool]) -> Results:
        """The same without the results that `wanted` is false for."""
        return Results([result for result in self.found if wanted(result)], self.published)

    def compared(self, reference: str) -> Results:
        """The results of KL and weight change against this reference alone; UserError when there are none."""
        found = self.only(lambda result: result.reference == reference)
        if not found.found:
            raise UserError(
                f"reference: none of {', '.join(self.runs)} is compared with {reference!r}; name other runs."
            )
        return found

    def read(self, stage: str, file: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """`columns` (None: all) of a parquet file of every result of a stage, in one frame.

        Columns: run, seed, part, shard, reference, then the file's. Raises UserError naming the file that is missing,
        not what its manifest says, empty, or without one of the columns.
        """
        import pandas as pd

        found = self.of(stage)
        if not found:
            raise UserError(f"none of {', '.join(self.runs)} has results of stage {stage}; name other runs in `runs`.")
        frames = [_whose(result, files.table(result.step / file, columns)) for result in found]
        return pd.concat(frames, ignore_index=True)

    # ------------------------------------------------------------ what stages write

    def log(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """`columns` (None: all) of the training logs of trained and given runs, by optimizer step (column step).

        Raises UserError naming the run that has no log or not one of the columns.
        """
        import pandas as pd

        frames = []
        for result in self.of("train", "given"):
            if not (result.step / LOG).is_file():
                raise UserError(
                    f"run {result.run!r} has no training log: {result.step} holds no {LOG}; leave it out of `runs`."
                )
            frame = files.table(result.step / LOG)
            for column in columns or ():
                if column not in frame:
                    raise UserError(
                        f"the training log of run {result.run!r} has no column {column!r}"
                        f"{nearest(column, frame.columns)} ({result.step / LOG})."
                    )
            frame = frame if columns is None else frame[["step", *columns]]
            frames.append(_whose(result, frame.sort_values("step")))
        if not frames:
            raise UserError(f"none of {', '.join(self.runs)} was trained; name other runs in `runs`.")
        return pd.concat(frames, ignore_index=True)

    def scores(self) -> pd.DataFrame:
        """Benchmark scores: columns step, task, value (0 to 1), stderr (uncertainty.question_error), questions.

        One metric stands for a task: the one its harness reports first; for IFEval the strict ones of whole prompts
        and of single instructions, as two tasks.
        """
        import pandas as pd

        columns = ["step", "task", "metric", "value", "stderr", "questions"]
        frames = []
        for result in self.of("evaluate"):
            frame = files.table(result.step / "scores.parquet", columns)
            frame["task"] = list(map(_headline, frame["task"], frame["metric"]))
            frame = frame.dropna(subset=["task"]).drop_duplicates(["step", "task"])
            frames.append(_whose(result, frame.drop(columns="metric")))
        if not frames:
            raise UserError(f"none of {', '.join(self.runs)} was evaluated; name other runs in `runs`.")
        frame = pd.concat(frames, ignore_index=True)
        twice = frame[frame.duplicated(["run", "seed", "step", "task"])]
        if len(twice):
            run, seed, step, task = twice.iloc[0][["run", "seed", "step", "task"]]
            raise UserError(f"run {run!r}, seed {seed}: two results hold the scores of {task} at step {step}.")
        frame["stderr"] = list(map(question_error, frame["value"], frame["stderr"], frame["questions"]))
        return frame

    def answers(self) -> pd.DataFrame:
        """Score of every question: columns step, task (as in `scores`), group (the task's score is the mean over them),
        question, score (mean over samples), draws (how many samples)."""
        import pandas as pd

        columns = ["step", "task", "metric", "group", "question", "score"]
        frames = []
        for result in self.of("evaluate"):
            frame = files.table(result.step / "samples.parquet", columns)
            kinds = frame[["task", "metric"]].drop_duplicates()
            kinds["name"] = list(map(_headline, kinds["task"], kinds["metric"]))
            frame = frame.merge(kinds.dropna(subset=["name"]).drop_duplicates("name"), on=["task", "metric"])
            by_question = frame.groupby(["step", "name", "group", "question"], sort=False)["score"]
            means = by_question.agg(score="mean", draws="size").reset_index()
            frames.append(_whose(result, means.rename(columns={"name": "task"})))
        if not frames:
            raise UserError(f"none of {', '.join(self.runs)} was evaluated; name other runs in `runs`.")
        return pd.concat(frames, ignore_index=True)

    def kl(self) -> pd.DataFrame:
        """KL of every checkpoint: columns step, kl, kl_solution (nats, means over questions), *_stderr, questions."""
        frame = self.read("kl", "kl.parquet", ["step", "question", "kl", "kl_solution"])
        grouped = frame.groupby([*WHOSE, "step"], sort=False)
        means = grouped[["kl", "kl_solution"]].mean()
        errors = grouped[["kl", "kl_solution"]].sem().add_suffix("_stderr")
        return means.join(errors).assign(questions=grouped.size()).reset_index()

    def weight_change(self) -> pd.DataFrame:
        """||W - W_reference||_F / ||W_reference||_F of every matrix: columns step, layer, projection, relative."""
        columns = ["step", "layer", "projection", "relative"]
        return self.read("weight_change", "weight_change.parquet", columns)

    def structure(self) -> pd.DataFrame:
        """Structure of every matrix's update: the columns of scalpel/analysis/structure.py."""
        return self.read("structure", "structure.parquet")

    # ------------------------------------------------------------ placing checkpoints

    def placed(self, frame: pd.DataFrame, x: str = "steps") -> pd.DataFrame:
        """`frame`, which has run, seed and step, with two columns more.

        checkpoint: 1, 2, ... of the run's seed, by which the checkpoints of its seeds are paired; where seeds have
        unlike many, of all their steps together, so that equal steps are paired. x: where the checkpoint stands on the
        axis `x` (scalpel/exhibits/axis.py), the mean over the run's seeds.
        """
        place = axis.places(self.found, x)
        keys = list(zip(frame["run"], frame["seed"], frame["step"], strict=True))
        where = {key: place(*key) for key in dict.fromkeys(keys)}
        counts = frame.groupby(["run", "seed"])["step"].nunique().groupby("run").nunique()
        unlike = frame["run"].map(counts > 1)
        of_seed = frame.groupby(["run", "seed"])["step"].rank("dense")
        frame = frame.assign(
            checkpoint=of_seed.mask(unlike, frame.groupby("run")["step"].rank("dense")).astype(int),
            x=[where[key] for key in keys],
        )
        frame["x"] = frame.groupby(["run", "checkpoint"])["x"].transform("mean")
        return frame


def final(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step of each run and seed."""
    return frame[frame["step"] == frame.groupby(["run", "seed"])["step"].transform("max")].reset_index(drop=True)


def task_order(tasks: Iterable[str]) -> list[str]:
    """Each task once: known ones first, in the papers' order, the others as they come."""
    found = list(dict.fromkeys(tasks))
    return [task for task in TASKS if task in found] + [task for task in found if task not in TASKS]


def task_name(task: str) -> str:
    return TASKS.get(task, task)


def _headline(task: str, metric: str) -> str | None:
    """Under which name a metric stands for its task; None: it does not."""
    for level, name in (("prompt_level_", "prompt"), ("inst_level_", "instruction")):
        if metric.startswith(level):
            return f"{task}_{name}" if "strict" in metric else None
    return task


def _whose(result: Result, frame: pd.DataFrame) -> pd.DataFrame:
    for place, name in enumerate(WHOSE):
        frame.insert(place, name, getattr(result, name))
    return frame
