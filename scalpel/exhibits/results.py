"""Results read back for figures and the report, one table per run, whatever its number of shards."""

from pathlib import Path

from scalpel.errors import UserError

TASKS = {
    "aime24": "AIME24",
    "math_500": "MATH-500",
    "gsm8k": "GSM8k",
    "gpqa_diamond": "GPQA Diamond",
    "mmlu": "MMLU",
    "mmlu_pro": "MMLU-Pro",
    "ifeval_prompt": "IFEval, prompts",
    "ifeval_instruction": "IFEval, instructions",
}
PROJECTION_LABELS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "MLP gate",
    "up_proj": "MLP up",
    "down_proj": "MLP down",
}


def runs_of(inputs: dict[str, list[Path]], stage: str) -> list[str]:
    """Names of the runs with results of `stage`, in the order given."""
    return [role.split("/", 1)[1] for role in inputs if role.split("/", 1)[0] == stage]


def read(directories: list[Path], file: str, columns: list[str] | None = None):
    """pandas frame of `columns` (None: all) of all shards; UserError naming the file that lacks them or is empty."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frames = []
    for directory in directories:
        path = directory / file
        try:
            frames.append(pq.read_table(path, columns=columns).to_pandas())
        except FileNotFoundError:
            raise UserError(f"{path} is missing; delete {directory} and run snakemake again.") from None
        except (OSError, pa.ArrowException, ValueError, KeyError):
            raise UserError(f"{path} is damaged; delete {directory} and run snakemake again.") from None
        missing = set(columns or ()) - set(frames[-1].columns)
        if missing:
            raise UserError(f"{path} lacks column {min(missing)}; delete {directory} and run snakemake again.")
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        raise UserError(f"{directories[0] / file} holds no rows; nothing can be drawn from it.")
    return frame


def train_log(directories: list[Path], columns: list[str]):
    """Training log by optimizer step."""
    return read(directories, "log.parquet", ["step", *columns]).sort_values("step", ignore_index=True)


def kl(directories: list[Path]):
    """Frame indexed by step: kl, kl_solution (nats, means over questions), their standard errors, questions."""
    frame = read(directories, "kl.parquet", ["step", "question", "kl", "kl_solution"]).groupby("step")
    means = frame[["kl", "kl_solution"]].mean()
    errors = frame[["kl", "kl_solution"]].sem().add_suffix("_stderr")
    return means.join(errors).assign(questions=frame.size())


def weight_change(directories: list[Path]):
    """Frame of step, layer, projection, relative: ||W - W_base||_F / ||W_base||_F."""
    return read(directories, "weight_change.parquet", ["step", "layer", "projection", "relative"])


def scores(directories: list[Path]):
    """Frame of step, task, value, stderr, questions: one headline metric per task, IFEval's two strict ones as two.

    A task with several metrics is shown by the one its harness reports first.
    """
    columns = ["step", "task", "metric", "value", "stderr", "questions"]
    frame = read(directories, "scores.parquet", columns)
    keys = []
    for task, metric in zip(frame["task"], frame["metric"], strict=True):
        if task == "ifeval":
            level = "prompt" if "prompt" in metric else "instruction"
            keys.append(None if "loose" in metric else f"ifeval_{level}")
        else:
            keys.append(task)
    frame["task"] = keys
    frame = frame.dropna(subset=["task"]).drop_duplicates(["step", "task"])
    return frame.sort_values(["step"], kind="stable", ignore_index=True)


def final(frame):
    """The rows of the last step of a frame with a column `step`."""
    return frame[frame["step"] == frame["step"].max()]


def task_order(frames) -> list[str]:
    """Tasks that occur in any of the frames, known ones first in the paper's order."""
    found = {task for frame in frames for task in frame["task"]}
    return [task for task in TASKS if task in found] + sorted(found - set(TASKS))
