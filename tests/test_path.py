"""The checkout lies where a shell would execute its name: everything works there, and nothing of it is executed.

The complete run of tests/test_workflow.py takes place there, too.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.quoted import quote
from tests.hostile_path import ROOT, checkout, executed, own_python

PIP = "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\nprint(sys.argv[1], sys.executable)\n"


@pytest.fixture
def there(tmp_path) -> Path:
    return checkout(tmp_path)


def run(command: list, there: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTHONPATH"))}
    done = subprocess.run(
        [*map(str, command)], cwd=there, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def test_make(there):
    """What needs no environment to be made; every program is run as a module of Python."""
    (there / ".venv").mkdir()
    (there / ".venv" / ".made_of").write_text("laptop none")
    lines = run(["make", "-n", "demo", "test", "check", "fetch", "resolve", "preflight"], there)
    lines += run(["make", "-n", "setup-gpu", "verify", "status"], there)
    assert set(re.findall(r"\.venv/bin/(\S+)", lines)) == {"python", "ruff"}
    shutil.rmtree(there / ".venv")
    own_python(there)
    assert "results" in run(["make", "status"], there)
    assert not executed(there.parent)


def test_programs_that_pip_wrote(there):
    """As pip writes them, a shell executes part of the path; then the path is quoted, and they run."""
    python = own_python(there)
    program = python.with_name("program")
    program.write_text(PIP.format(python=python))
    program.chmod(0o755)
    subprocess.run([program, "word"], cwd=there, capture_output=True)
    assert executed(there.parent)
    for path in executed(there.parent):
        path.unlink()
    run([python, "-m", "scripts.quoted"], there)
    assert run([program, "word"], there).split(maxsplit=1) == ["word", f"{python}\n"]
    assert not executed(there.parent) and program.stat().st_mode & 0o777 == 0o755
    before = program.read_bytes()
    quote(program, str(python))
    assert program.read_bytes() == before and ROOT not in there.parents and sys.executable not in str(before)


def test_mmlu_pro_reads_its_rows_there(tiny_base, tiny_sets, there):
    """lm-eval reads a YAML that names files below the results."""
    from scalpel.chat import load_tokenizer
    from scalpel.config.evaluation import TaskRecipe
    from scalpel.evaluation.lm_eval_engine import LMEvalEngine
    from scalpel.evaluation.mmlu_pro import MMLUPro
    from scalpel.evaluation.question_set import open_set
    from scalpel.inference import EngineSettings, open_engine

    model = LMEvalEngine(open_engine("transformers", tiny_base, EngineSettings()), load_tokenizer(tiny_base), 1)
    task = MMLUPro("mmlu_pro", TaskRecipe(shots=0), open_set(tiny_sets["mmlu_pro"]), model, there)
    assert len(task.evaluate()) == 4
