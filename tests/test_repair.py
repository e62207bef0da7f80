"""What is shown is current because its record says so, and what is damaged is made again with all that came of it.

Made-up results of two runs; the exhibits are drawn for real, and Snakemake itself says what it would do.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from scalpel import damage
from scalpel.artifact.files import MANIFEST
from scalpel.config.load import load
from scalpel.exhibits.render import render
from scalpel.plan import Plan
from scalpel.report.build import report
from scalpel.stages import REPORT
from tests import synthetic
from tests.test_workflow import ROOT, planned, snakemake

CONFIG = {
    "studies": ["mine.yaml"],
    "overrides": {"methods": {method: {"checkpoints": synthetic.CHECKPOINTS} for method in ("grpo", "sft")}},
}
STUDY = {
    "title": "Mine",
    "runs": {"grpo": {"method": "grpo"}, "sft_1ep": {"method": "sft", "epochs": 1}},
    "exhibits": {
        "kl": {"dpi": 50},
        "norms": {"kind": "weight_change_table"},
        "rewards": {"kind": "training_curves", "runs": ["grpo"], "columns": {"accuracy_reward": "reward"}, "dpi": 50},
    },
}
pytestmark = pytest.mark.slow


class Lab:
    """A folder with a config, a study and its results."""

    def __init__(self, root: Path):
        self.root, self.results = root, root / "results"

    def write(self, config: dict = CONFIG, study: dict = STUDY) -> None:
        (self.root / "config.yaml").write_text(yaml.safe_dump(config))
        (self.root / "mine.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def plan(self) -> Plan:
        here = Path.cwd()
        os.chdir(self.root)
        try:
            return Plan(load(yaml.safe_load((self.root / "config.yaml").read_text()), ROOT / "workflow"),
                        ROOT / "workflow", self.root)  # fmt: skip
        finally:
            os.chdir(here)

    def draw(self) -> None:
        plan = self.plan()
        plan.record()
        for drawing in plan.drawings.values():
            (report if drawing.name == REPORT else render)(self.root / drawing.recipe_path)

    def jobs(self) -> dict[str, int]:
        """What Snakemake would do, by rule."""
        output = snakemake("-n", cwd=self.root)
        found = {} if "Nothing to be done" in output else planned(output)
        return {rule: count for rule, count in found.items() if rule != "all"}

    def run(self, program: str, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", f"scripts.{program}", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def only(self, pattern: str) -> Path:
        (found,) = self.results.glob(pattern)
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("whole"))
    shutil.copytree(ROOT / "profiles", lab.root / "profiles")
    lab.write()
    synthetic.finish_all(lab.plan(), lab.root)
    lab.draw()
    return lab


@pytest.fixture
def lab(whole, tmp_path) -> Lab:
    """A copy as people make them: without times, and without what Snakemake notes for itself."""
    shutil.copytree(
        whole.root, tmp_path / "copy", ignore=shutil.ignore_patterns(".snakemake"), copy_function=shutil.copy
    )
    return Lab(tmp_path / "copy")


# ---------------------------------------------------------------- currency


def test_a_copy_is_as_current_as_it_was(lab):
    for number, path in enumerate(sorted(lab.results.rglob("*"))):
        os.utime(path, (1e9 + 7919 * number % 1000,) * 2)  # no order of times means anything
    assert lab.jobs() == {}


@pytest.mark.parametrize(
    ("config", "study", "jobs"),
    [
        ({}, {"title": "Yours"}, {"report": 1}),
        ({"overrides": {"description": "Other"}}, {}, {"report": 1}),
        ({}, {"exhibits": STUDY["exhibits"] | {"kl": {"dpi": 60}}}, {"figure": 1, "report": 1}),
        ({"runs": {"grpo": {"learning_rate": 2e-4}}}, {}, {"train": 1, "evaluate": 1, "kl": 1, "weight_change": 1,
                                                           "figure": 2, "table": 1, "report": 1}),
    ],
    ids=["title", "scale", "figure", "rate"],
)  # fmt: skip
def test_what_changed_is_shown_again_in_a_copy(lab, config, study, jobs):
    """The copy has none of Snakemake's notes, as after `make clean`: that said "Nothing to be done"."""
    lab.write(synthetic.merged(CONFIG, config), STUDY | study)
    assert lab.jobs() == jobs


def test_a_result_made_again_with_other_content_is_shown_again(lab):
    plan = lab.plan()
    step = next(e.step for e in plan.entries["mine"] if (e.stage, e.run) == ("kl", "grpo"))
    synthetic.finish(step, lab.root, synthetic.made_up("kl", "sft_1ep", 42, {}))
    assert not plan.is_current(plan.drawings["mine", "kl"]) and plan.is_current(plan.drawings["mine", "norms"])
    assert lab.jobs() == {"figure": 1, "report": 1}
    code, words = lab.run("verify")
    assert (
        code == 1
        and "results/figures/mine/kl.json: made of results/kl/grpo" in words
        and "held something else" in words
    )


# ---------------------------------------------------------------- verify and repair


def test_all_that_is_whole_is_called_whole(lab):
    code, words = lab.run("verify")
    assert code == 0 and "0 damaged, 0 derived" in words
    assert lab.run("repair", "--yes") == (0, "nothing is damaged\n") and not (lab.results / "aside").exists()


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("figures/mine/kl.pdf", append, "kl.pdf: altered"),
        ("figures/mine/kl.csv", cut, "kl.csv: truncated"),
        ("tables/mine/norms.csv", Path.unlink, "norms.csv: missing"),
        ("tables/mine/norms.json", cut, "norms.json: damaged"),
        ("figures/mine/kl.json", Path.unlink, "kl.pdf: no record beside it says what it shows"),
        ("report/mine/index.html", cut, "index.html: truncated"),
    ],
)
def test_figures_tables_and_the_report_are_verified(lab, file, change, words):
    change(lab.results / file)
    code, said = lab.run("verify")
    assert code == 1 and words in said
    assert lab.run("repair", "--yes")[0] == 0
    jobs = lab.jobs()
    assert sum(jobs.values()) == ("report" in jobs) + (REPORT not in file) and jobs["report"] == 1
    assert lab.run("verify")[0] == 0


def test_damage_is_made_again_with_all_that_came_of_it_and_nothing_else(lab):
    """One bit of a training log: the run, its three measurements, and what shows them; the other run stays."""
    train = lab.only("train/grpo-*")
    content = bytearray((train / "log.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (train / "log.parquet").write_bytes(content)
    code, words = lab.run("verify")
    assert code == 1 and f"{train.name}/log.parquet: altered" in words
    for stage in ("evaluate", "kl", "weight_change"):
        directory = lab.only(f"{stage}/grpo[.-]*")
        assert f"results/{stage}/{directory.name}: made of checkpoints, which is damaged" in words
    assert "1 damaged, 7 derived from damage" in words and "sft_1ep" not in words

    before = {path: path.stat().st_ino for path in lab.results.rglob(MANIFEST)}
    code, listed = lab.run("repair")
    assert code == 0 and listed.count("damaged  ") == 1 and listed.count("derived  ") == 7
    assert {path: path.stat().st_ino for path in lab.results.rglob(MANIFEST)} == before, "it only lists"
    assert lab.jobs() == {}
    assert lab.run("repair", "--yes")[0] == 0
    assert lab.jobs() == {"train": 1, "evaluate": 1, "kl": 1, "weight_change": 1, "figure": 2, "table": 1, "report": 1}
    assert len(list(lab.results.glob(f"aside/*/train/grpo-*/{MANIFEST}"))) == 1
    assert lab.run("verify")[0] == 0


def test_make_is_the_same_command(lab):
    (lab.results / "tables" / "mine" / "norms.csv").write_text("x")
    for name in ("Makefile", "scripts", "scalpel", ".venv"):
        (lab.root / name).symlink_to(ROOT / name)
    said = subprocess.run(["make", "repair", "YES=1"], cwd=lab.root, capture_output=True, text=True)
    assert said.returncode == 0 and "2 moved to results/aside/" in said.stderr, said.stderr
    assert lab.jobs() == {"table": 1, "report": 1}


def test_a_damaged_manifest_or_recipe_is_damage(lab):
    cut(lab.only("base/*/manifest.json"))
    recipe = lab.only("kl/sft_1ep*/recipe.json")
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"name": "other"}))
    found = {item.place.parent.name: item for item in damage.find(lab.results) if item.problems}
    assert set(found) == {"base", "kl"}
    code, words = lab.run("verify")
    assert code == 1 and "recipe.json: name differ from the manifest's" in words


def test_what_is_written_while_it_is_verified_is_not_damaged(lab, monkeypatch):
    kl = lab.results / "figures" / "mine" / "kl.pdf"
    content = kl.read_bytes()
    kl.write_bytes(b"half")
    monkeypatch.setattr(damage.time, "sleep", lambda seconds: kl.write_bytes(content))
    assert damage.find(lab.results) == []


# ---------------------------------------------------------------- deleted intermediates


def test_a_deleted_intermediate_is_named_with_the_command_that_makes_it_again(lab):
    trained = lab.only("train/grpo-*")
    shutil.rmtree(trained)
    assert lab.jobs() == {}, "what was made of it stands"
    code, words = lab.run("status")
    assert code == 0
    (line,) = [line for line in words.splitlines() if line.startswith("missing")]
    target = f"results/train/{trained.name}/{MANIFEST}"
    assert line.startswith(f"missing   results/train/{trained.name} ") and line.endswith(
        f" {target} --config scale=laptop]"
    )
    assert planned(snakemake("-n", target, cwd=lab.root)) == {"train": 1}
    shutil.rmtree(lab.only("kl/grpo.*"))
    (lab.results / "figures" / "mine" / "kl.json").unlink()  # now Snakemake makes both by itself
    assert "make it again by" not in lab.run("status")[1]
    jobs = {"train": 1, "kl": 1, "evaluate": 1, "weight_change": 1, "figure": 2, "report": 1}
    assert lab.jobs() == jobs, "measurements that stand are asked whether they were made of what train makes"


def test_results_may_be_a_link_to_a_folder_of_another_name(lab, tmp_path):
    lab.results.rename(tmp_path / "big disk")
    lab.results.symlink_to(tmp_path / "big disk")
    assert lab.jobs() == {} and lab.run("verify")[0] == 0
    shutil.rmtree(lab.only("order/*"))
    (lab.results / "figures" / "mine" / "kl.json").unlink()
    order = next(step for step in lab.plan().steps.values() if step.stage == "order")
    code, words = lab.run("order", order.directory)
    assert code == 2 and "is missing; run snakemake once" in words
    lab.draw()
    code, words = lab.run("order", order.directory)
    assert code == 0, f"its input was not found: {words}"
    assert lab.jobs() == {}


# ---------------------------------------------------------------- Snakemake's own report


def test_snakemake_s_report_carries_exhibits_with_their_captions(lab):
    study = yaml.safe_load((lab.root / "mine.yaml").read_text())
    study["exhibits"]["kl"]["caption"] = "Divergence of each run from the model it began with."
    lab.write(study=study)
    lab.draw()
    snakemake("--report", "report.zip", cwd=lab.root)
    with zipfile.ZipFile(lab.root / "report.zip") as file:
        names = file.namelist()
        (page,) = [file.read(name).decode() for name in names if name.endswith("report.html")]
    assert "Divergence of each run from the model it began with." in page
    for shown in ("kl.png", "rewards.png", "norms.csv", "index.html"):
        assert any(name.endswith(shown) for name in names), names
