"""Config: every mistake is one sentence that names the field, and for an unknown key the nearest valid one."""

import shutil
from pathlib import Path

import pytest
import yaml

from scalpel.config.load import load, read_yaml, record_config, recorded_config
from scalpel.errors import UserError

WORKFLOW = Path(__file__).resolve().parent.parent / "workflow"
SFT = {"method": "sft", "epochs": 1}

MISTAKES = [
    ({"scal": "x"}, "unknown key 'scal'; did you mean 'scale'?"),
    ({"scale": "lap"}, "no scale is named 'lap'; did you mean 'laptop'?"),
    ({"scale": 3}, "scale: input should be a valid string, not 3"),
    ({"studies": ["scalpel_vs_hamer"]}, "no study is named 'scalpel_vs_hamer'; did you mean 'scalpel_vs_hammer'?"),
    ({"studies": []}, "studies: list should have at least 1 item"),
    ({"runs": {"grop": {}}}, "no run is named 'grop'; did you mean 'grpo'?"),
    ({"runs": {"grop": {}}}, "workflow/studies/scalpel_vs_hammer.yaml"),
    ({"runs": {"other/grpo": {}}}, "no study in use is named 'other'"),
    ({"runs": {"grpo": {"lerning_rate": 1}}}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
    ({"runs": {"grpo": {"steps": "x"}}}, "steps: input should be a valid integer"),
    ({"runs": {"grpo": {"steps": -1}}}, "greater than 0, not -1"),
    ({"runs": {"grpo": {"steps": 10**12}}}, "less than or equal to 1000000000"),
    ({"runs": {"grpo": {"seed": 7}}}, "give `seeds: [42]` beside `method`"),
    ({"runs": {"grpo": {"seeds": []}}}, "seeds: tuple should have at least 1 item"),
    ({"runs": {"grpo": {"seeds": [1, 1]}}}, "seeds names one twice"),
    ({"runs": {"grpo": {"model": "olmo"}}}, "no model is named 'olmo'"),
    ({"runs": {"grpo": {"given": {"kind": "local", "path": "x"}}}}, "give `method` for a run to be trained"),
    ({"runs": {"mine": {"method": "sfd", "epochs": 1}}}, "method 'sfd' is not known; did you mean 'sft'?"),
    ({"runs": {"sft_1ep": {"layers_from": "base"}}}, "`layers_from` and `trainable.freeze_mlp_above` go together"),
    ({"runs": {"sft_1ep": {"trainable": {"only": ["qproj"]}}}}, "'q_proj'"),
    ({"runs": {"base": SFT}}, "names that begin with 'base' are the base models'"),
    ({"runs": {"../evil": SFT}}, "'../evil' is no name"),
    ({"runs": {"a b": SFT}}, "'a b' is no name"),
    ({"overrides": {"evaluation": {"tasks": {"mmul": {}}}}}, "no question set is named 'mmul'; did you mean 'mmlu'?"),
    ({"overrides": {"guard": ["mmul"]}}, "guard: no question set is named 'mmul'"),
    ({"overrides": {"model": "olmo"}}, "model of study scalpel_vs_hammer: no model is named 'olmo'"),
    ({"overrides": {"models": {"toy": {"toy": {"step": 3}}}}}, "did you mean 'steps'?"),
    ({"overrides": {"models": {"toy": {"toy": {"vocab_size": 1}}}}}, "vocab_size: input should be greater than"),
    ({"overrides": {"models": {"toy": {"toy": {"heads": 5}}}}}, "must be an even multiple of heads 5"),
    ({"overrides": {"models": {"toy": {"toy": {"learning_rate": -1}}}}}, "input should be greater than 0"),
    ({"overrides": {"datasets": {"toy": {"source": {"kind": "parket"}}}}}, "'parquet'"),
    (
        {"overrides": {"datasets": {"toy": {"source": {"kind": "hub", "repo": "a/b", "revision": "main"}}}}},
        "revision",
    ),
    ({"overrides": {"questions": {"exam": {"fil": "x"}}}}, "give `file`, `lm_eval` or `kind: toy`"),
    ({"overrides": {"questions": {"exam": {"file": "x", "forma": "math"}}}}, "did you mean 'format'?"),
    ({"overrides": {"studies": {"scalpel_vs_hammer": {"runs": {"grop": {}}}}}}, "has no run 'grop'; did you mean"),
    ({"overrides": {"studies": {"scalpel_vs_hammer": {"runs": {"grop": {}}}}}}, "workflow/studies/scalpel_vs_"),
    ({"overrides": {"runs": {"grop": {"steps": 3}}}}, "workflow/studies/scalpel_vs_hammer.yaml has no run 'grop'"),
    ({"overrides": {"studies": {"scalpel_vs_hamer": {}}}}, "no study in use is named 'scalpel_vs_hamer'; did you mean"),
    ({"runs": {"base_x": SFT}}, "names that begin with 'base' are the base models'"),
    ({"runs": {"a/../evil": SFT}}, "'a/../evil' is no name"),
    ({"studies": ["../../evil"]}, "no study is named '../../evil'"),
    ({"studies": ["../../evil.yaml"]}, "../../evil.yaml does not exist"),
    *(
        ({"overrides": {part: {name: value}}}, f"{part}: {name!r} is no name: letters, digits and _ only, 60 at most")
        for part, value in (
            ("models", {"kind": "toy"}), ("datasets", {}), ("questions", {"kind": "toy"}), ("kl", {}),
        )
        for name in ("../../evil", "a/b", "a b", "", "x" * 61, "-x")
    ),
    ({"overrides": {"evaluation": {"tasks": {"a/b": {}}}}}, "'a/b' is no name"),
    ({"overrides": {"evaluation": {"tasks": {"mmlu": {"group": "a/b"}}}}}, "group: string should match pattern"),
    ({"overrides": {"methods": {"grop": {}}}}, "no method is named 'grop'; did you mean 'grpo'?"),
    ({"overrides": {"resources": {"trian": {"mem_mb": 1}}}}, "no stage is named 'trian'; did you mean 'train'?"),
    ({"studies": ["sft_then_rl"], "overrides": {"methods": {"luffy": {"epsilon_high": 0.3}}}}, "off without `epsilon`"),
    ({"studies": ["sft_then_rl"], "overrides": {"methods": {"srft": {"epsilon": 0.2}}}}, "ratio, it must be null"),
    ({"overrides": "no"}, "overrides: input should be a valid dictionary, not 'no'"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake_is_one_sentence(raw, sentence):
    with pytest.raises(UserError) as caught:
        load(raw, WORKFLOW)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", ["laptop", "workstation", "gpu", "cluster"])
def test_scales_are_valid_and_survive_freezing(scale, tmp_path):
    config = load({"scale": scale}, WORKFLOW)
    counts = {name: run.recipe.checkpoints for name, run in config.studies["scalpel_vs_hammer"].runs.items()}
    assert counts.pop("sft_own_all") == 10 and set(counts.values()) == {20}
    (tmp_path / "frozen.json").write_text(record_config(config))
    assert recorded_config(tmp_path / "frozen.json") == config


def test_cluster_recipes_are_the_authors():
    runs = load({"scale": "cluster"}, WORKFLOW).studies["scalpel_vs_hammer"].runs
    grpo, sft = runs["grpo"].recipe, runs["sft_3ep"].recipe
    assert (grpo.learning_rate, grpo.steps, grpo.generations, grpo.temperature) == (1e-6, 571, 28, 0.6)
    assert (grpo.max_completion_tokens, grpo.max_grad_norm, grpo.beta, grpo.loss_type) == (1500, 0.2, 0.0, "dr_grpo")
    assert grpo.questions_per_step * grpo.generations == sft.sequences_per_step == 16 * 4 * 7
    assert (sft.learning_rate, sft.schedule, sft.warmup, sft.epochs) == (5e-5, "constant_with_warmup", 0.1, 3)
    assert runs["grpo"].seeds == (42,)


def runs(raw: dict):
    return load(raw, WORKFLOW).studies["scalpel_vs_hammer"].runs


def test_a_run_may_be_given_in_steps_instead_of_epochs():
    assert runs({"runs": {"sft_1ep": {"steps": 40}}})["sft_1ep"].recipe.epochs is None


def test_a_run_may_be_added_in_config_yaml():
    found = runs({"runs": {"slow": {"method": "sft", "epochs": 1, "learning_rate": 1e-5, "seeds": [1, 2]}}})["slow"]
    assert (found.recipe.learning_rate, found.seeds) == (1e-5, (1, 2))


def test_an_override_of_another_kind_replaces_the_whole():
    source = {"kind": "parquet", "path": "x.parquet"}
    config = load({"overrides": {"datasets": {"toy": {"source": source}}}}, WORKFLOW)
    assert config.scale.datasets["toy"].source.kind == "parquet"
    questions = load({"overrides": {"questions": {"mmlu": {"file": "x.parquet"}}}}, WORKFLOW).scale.questions["mmlu"]
    assert questions.kind == "files" and questions.file == Path("x.parquet")


def test_an_override_may_take_a_task_away():
    config = load({"overrides": {"evaluation": {"tasks": {"ifeval": None}}}}, WORKFLOW)
    assert "ifeval" not in config.scale.evaluation.tasks


def test_a_scale_gives_each_study_its_own_setting():
    own = {"scalpel_vs_hammer": {"seeds": [1, 2], "methods": {"sft": {"learning_rate": 3e-4}}}}
    config = load({"overrides": {"studies": own}}, WORKFLOW)
    study = config.studies["scalpel_vs_hammer"]
    assert study.runs["sft_1ep"].seeds == (1, 2) and study.runs["sft_1ep"].recipe.learning_rate == 3e-4
    assert config.scale.seeds == (42,)


def test_yaml_that_is_no_configuration(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"key 'a' stands there twice in line 3"):
        read_yaml(path)
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    path.write_text(bomb + "i: [" + ", ".join(["*h"] * 2000) + "]\n")
    with pytest.raises(UserError, match="too many aliases"):
        read_yaml(path)
    for text in ("steps: 2024-02-30", "a: !!int abc", f"a: {'9' * 5000}", f"a: {'[' * 3000}{']' * 3000}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"x\.yaml"):
            read_yaml(path)
    path.write_text("- a list\n")
    with pytest.raises(UserError, match="not a mapping"):
        read_yaml(path)


@pytest.mark.parametrize("part", ["runs", "exhibits", "looks"])
@pytest.mark.parametrize("name", ["../../evil", "a/b", "a b"])
def test_names_in_a_study_s_file(part, name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "runs": {"a": SFT}} | {part: {name: {}}}))
    with pytest.raises(UserError, match=rf"mine\.yaml: {part}: .* is no name"):
        load({"studies": [str(path)]}, WORKFLOW)


def test_a_study_s_file_has_a_name_that_is_one(tmp_path):
    path = tmp_path / "a b.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine"}))
    with pytest.raises(UserError, match="a study is called by its file's name"):
        load({"studies": [str(path)]}, WORKFLOW)


@pytest.mark.parametrize("scale", ["laptop", "workstation", "gpu", "cluster"])
def test_a_study_may_leave_out_runs_that_a_scale_speaks_of(scale, tmp_path):
    """And the shipped studies leave out none of them."""
    shutil.copytree(WORKFLOW, tmp_path / "workflow")
    spoken_of = read_yaml(WORKFLOW / "scales" / f"{scale}.yaml")["studies"]
    for study, setting in spoken_of.items():
        path = tmp_path / "workflow" / "studies" / f"{study}.yaml"
        content = read_yaml(path)
        assert set(setting.get("runs", {})) <= set(content["runs"])
        path.write_text(yaml.safe_dump(content | {"runs": {"grpo": {"method": "grpo"}}, "answer": None}))
    found = load({"scale": scale}, tmp_path / "workflow").studies
    assert all(set(study.runs) == {"grpo"} for study in found.values())


def test_a_mistake_in_a_study_of_one_s_own_names_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "runs": {"a": SFT}}))
    with pytest.raises(UserError, match=r"no run is named 'b'.*mine\.yaml"):
        load({"studies": ["mine.yaml"], "runs": {"b": {"epochs": 2}}}, WORKFLOW)


# ---------------------------------------------------------------- studies and runs made from others


def extended(tmp_path, text: str) -> Path:
    """The path of a study of this text that extends the first paper's."""
    path = tmp_path / "mine.yaml"
    path.write_text("title: mine\nextends: scalpel_vs_hammer\n" + text)
    return path


def test_a_study_may_extend_another(tmp_path):
    text = "runs:\n  grpo: {seeds: [1, 2]}\n  more: {method: sft, epochs: 2}\nlooks:\n  more: {label: More}\n"
    config = load({"studies": [str(extended(tmp_path, text))]}, WORKFLOW)
    study, parent = config.studies["mine"], load({}, WORKFLOW).studies["scalpel_vs_hammer"]
    assert [*study.runs] == [*parent.runs, "more"] and study.runs["grpo"].seeds == (1, 2)
    assert study.runs["grpo"].recipe == parent.runs["grpo"].recipe  # the scale's words for the parent hold, too
    assert study.runs["sft_matched"].recipe.steps == parent.runs["sft_matched"].recipe.steps
    assert study.exhibits.keys() == parent.exhibits.keys() and study.claims == parent.claims
    assert study.title == "mine" and study.looks["more"].label == "More"


def test_a_study_takes_an_exhibit_away_from_the_one_that_it_extends(tmp_path):
    study = load({"studies": [str(extended(tmp_path, "exhibits:\n  kl: null\n"))]}, WORKFLOW).studies["mine"]
    assert "kl" not in study.exhibits and "frontier" in study.exhibits
    path = tmp_path / "alone.yaml"
    path.write_text("title: alone\nexhibits:\n  kl: null\n")
    with pytest.raises(UserError, match="exhibits"):
        load({"studies": [str(path)]}, WORKFLOW)


def test_a_study_that_extends_itself_or_nothing_is_refused(tmp_path):
    path = extended(tmp_path, "")
    path.write_text(f"title: mine\nextends: {path.name}\n")
    with pytest.raises(UserError, match=r"mine.yaml: extends: 'mine.yaml' extends this study itself"):
        load({"studies": [str(path)]}, WORKFLOW)
    path.write_text("title: mine\nextends: scalpel_vs_hamer\n")
    with pytest.raises(UserError, match=r"mine.yaml: extends: no study is named 'scalpel_vs_hamer'; did you mean"):
        load({"studies": [str(path)]}, WORKFLOW)


def test_rates_and_steps_may_be_those_of_another_run(tmp_path):
    text = """runs:
  slow: {method: sft, matching: questions, rate_of: grpo, steps_of: grpo}
  fast: {method: grpo, rate_of: grpo, rate_times: 3}
  own: {method: sft, epochs: 1, rate_times: 0.1}
"""
    raw = {"studies": [str(extended(tmp_path, text))], "runs": {"grpo": {"learning_rate": 2e-4, "steps": 40}}}
    runs = load(raw, WORKFLOW).studies["mine"].runs
    assert runs["slow"].recipe.learning_rate == 2e-4 and runs["slow"].recipe.steps == 40
    shorter = load(raw | {"runs": raw["runs"] | {"slow": {"steps": 30}}}, WORKFLOW).studies["mine"].runs["slow"]
    assert shorter.recipe.steps == 30 and shorter.recipe.learning_rate == 2e-4
    assert runs["fast"].recipe.learning_rate == 6e-4 and runs["own"].recipe.learning_rate == 1e-4
    for text, words in (
        ("runs:\n  a: {method: sft, epochs: 1, rate_of: nobody}", "run 'a': rate_of: 'nobody' is no trained run"),
        ("runs:\n  a: {method: sft, steps_of: sft_1ep}", "run 'a': steps_of: that run has no number of steps"),
        ("runs:\n  a: {method: sft, steps_of: b}", "run 'a': steps_of: 'b' names no run with steps"),
        ("runs:\n  a: {method: sft, steps_of: grpo, steps: 5}", "run 'a': gives `steps` and `steps_of`; give one"),
        ("runs:\n  a: {method: sft, steps_of: 1.0e+300}", "run 'a': steps_of"),
        ("runs:\n  a: {method: sft, steps_of: [x]}", "run 'a': steps_of"),
    ):
        with pytest.raises(UserError, match=words):
            load({"studies": [str(extended(tmp_path, text))]}, WORKFLOW)
