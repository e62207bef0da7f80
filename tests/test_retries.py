"""What Snakemake tries again: what may pass by itself, and never what the user must put right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalpel.errors import AGAIN, FINAL, Passing, UserError, status_of

ROOT = Path(__file__).resolve().parent.parent
SNAKEFILE = f"""
import sys

sys.path.insert(0, {str(ROOT)!r})
from scalpel.launch.retries import final_errors_are_final

final_errors_are_final()
final_errors_are_final()


include: "{ROOT}/workflow/rules/common.smk"


rule result:
    output:
        "result",
    log:
        "logs/a result.log",
    shell:
        command("program", argument="{{output:q}}", label="a")
"""


def tries(folder: Path, statuses: list[int]) -> tuple[int, int]:
    """(how often a program was started that ends with these statuses, Snakemake's own exit status)."""
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / "scripts" / "program.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "tried = Path('tried')\nnumber = len(tried.read_text()) if tried.exists() else 0\n"
        f"tried.write_text('x' * (number + 1))\nstatus = {statuses}[number]\n"
        "if not status:\n    Path(sys.argv[1]).write_text('made')\nsys.exit(status)\n"
    )
    (folder / "tried").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--retries", "3"],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return len((folder / "tried").read_text()), done.returncode


def test_a_mistake_of_the_user_s_is_final(tmp_path):
    assert tries(tmp_path, [FINAL, 0]) == (1, 1)
    assert tries(tmp_path, [1, AGAIN, FINAL, 0]) == (3, 1)  # a new start tries it again
    assert tries(tmp_path, [1, AGAIN, 137, 0]) == (4, 0)


@pytest.mark.parametrize(("error", "status"), [(UserError("x"), FINAL), (Passing("x"), 1)])
def test_statuses(error, status):
    assert status_of(error) == status
