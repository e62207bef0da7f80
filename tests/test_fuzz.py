"""Whatever stands in config.yaml: a plan, or one sentence. A seeded walk over every field, with unexpected values."""

import datetime
import json
import math
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from scalpel.config.load import load, merged
from scalpel.config.models import HubCheckpoints, LocalCheckpoints
from scalpel.config.scale import Scale, Setting
from scalpel.config.study import RunAxes, UserConfig
from scalpel.errors import UserError
from scalpel.exhibits import find, kinds
from scalpel.exhibits.options import ExhibitOptions
from scalpel.methods import METHODS
from scalpel.plan import Plan
from tests import synthetic
from tests.synthetic import STUDY, WORKFLOW
from tests.test_newcomer import planned

BAD = [
    None, True, False, 0, 1, -1, 3, 10**9, 10**30, -0.5, 1e-300, 1e300, math.nan, math.inf, "", " ", "x", "base", "a b",
    "../../evil", "a/b", "é\n{", "x" * 5000, [], [None], ["x", "x"], [[[]]], {}, {"x": 1}, {"kind": "x"}, {"": {}},
    {1: 2}, {"answer": 3}, datetime.date(2026, 1, 1), b"\xff", "{question", "{0.__class__}", "%s", "grpo", 1000,
]  # fmt: skip
SECONDS = 20.0  # that one plan may take: a hang is a failure, too


def paths(content, above=()) -> list[tuple]:
    """Every place of a nested mapping, those of whole mappings too."""
    found = [above] if above else []
    for key, value in content.items() if isinstance(content, dict) else ():
        found += paths(value, (*above, key))
    return found


def nested(path: tuple, value) -> dict:
    for key in reversed(path):
        value = {key: value}
    return value


OWN = {  # what the laptop's scale does not have: every kind of source
    "models": {"mine": {"kind": "local", "path": "."}, "hub": {"kind": "hub", "repo": "a/b", "revision": "0" * 40}},
    "datasets": {
        "mine": {"source": {"kind": "parquet", "path": "rows.parquet", "columns": {}, "constants": {}}},
        "hub": {"source": {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "files": ["*"]}},
    },
    "questions": {
        "exam": {"file": "rows.parquet", "examples": "rows.parquet", "format": "math", "columns": {}},
        "arc": {"lm_eval": "arc_challenge", "files": {"test": "rows.parquet"}},
    },
    "evaluation": {"tasks": {"exam": {}, "arc": {}}},
    "kl": {"exam": {}},
}  # fmt: skip


def cases() -> list[tuple[str, dict]]:
    """(what is changed, config.yaml) for every field and value, in one order."""
    scale = load({}, WORKFLOW).scale.model_dump(mode="json")
    places = [("overrides", *path) for path in paths(scale)]
    places += [("overrides", "studies", STUDY, *path) for path in paths(Setting.model_fields)]
    for source in ("models", "datasets", "questions", "evaluation", "kl"):
        places += [("overrides", *path) for path in paths({source: OWN[source]})]
    for method, run in (("grpo", "grpo"), ("sft", "sft_1ep")):
        recipe = METHODS[method].Recipe(learning_rate=1e-3, **({} if method == "grpo" else {"epochs": 1}))
        places += [("runs", run, *path) for path in paths(recipe.identity())]
    places += [("runs", "grpo", field) for field in RunAxes.model_fields]
    for given in (LocalCheckpoints, HubCheckpoints):
        places += [("runs", "mine", "given", field) for field in given.model_fields]
    places += [(field,) for field in UserConfig.model_fields]
    places += [("runs", "new", field) for field in RunAxes.model_fields]
    return [(f"{'.'.join(map(str, place))} = {value!r:.60}", place, value) for place in places for value in BAD]


def config(place: tuple, value) -> dict:
    raw = nested(place, value)
    own = place[:2] in [("overrides", name) for name in OWN] and len(place) > 2
    if own and place[2] in {"mine", "hub", "exam", "arc", "source", "tasks"}:
        below = {"overrides": OWN}
        if place[1] == "models":
            below = {"overrides": OWN | {"model": place[2]}}
        if place[1] == "datasets":
            below = {"overrides": OWN | {"dataset": place[2]}}
        return merged(below, raw)
    if place[:2] == ("runs", "mine"):
        kind = "hub" if place[-1] == "repo" else "local"
        raw["runs"]["mine"]["given"].setdefault("kind", kind)
    if place[:2] == ("runs", "new"):
        raw["runs"]["new"] |= {"method": "sft", "epochs": 1}
    return raw


def bad_outcomes(chosen, folder: Path) -> list[str]:
    found = []
    for name, place, value in chosen:
        started = time.monotonic()
        try:
            outcome = planned(config(place, value), folder)
            assert isinstance(outcome, Plan)
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 8000:
                found.append(f"{name}: several lines: {error!r:.300}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error!s:.200}")
        if time.monotonic() - started > SECONDS:
            found.append(f"{name}: took {time.monotonic() - started:.0f} s")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    row = {
        "problem": "What is 1 + 1?", "solution": r"\boxed{2}", "answer": "2", "source": "cn_k12", "generations": ["2"],
        "correctness_math_verify": [True], "is_reasoning_complete": [True], "question": "q", "id": "1",
        "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A",
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row] * 500), path / "rows.parquet")
    return path


def test_any_value_in_any_field_is_a_plan_or_a_sentence(folder, monkeypatch):
    monkeypatch.chdir(folder)
    chosen = random.Random(8).sample(cases(), 250)
    assert not bad_outcomes(chosen, Path("."))


@pytest.mark.campaign
@pytest.mark.parametrize("share", range(8))
def test_every_value_in_every_field_is_a_plan_or_a_sentence(folder, share, monkeypatch):
    monkeypatch.chdir(folder)
    chosen = cases()[share::8]
    print(f"{len(chosen)} configurations")
    assert not bad_outcomes(chosen, Path("."))


@pytest.mark.slow
def test_any_value_in_any_option_of_an_exhibit_is_a_plan_or_a_sentence(tmp_path):
    """And in every field of a study's file."""
    rng, found, whole = random.Random(8), [], synthetic.study_file()
    shown = {raw.get("kind", name): name for name, raw in whole["exhibits"].items()}
    places = [("exhibits", shown[kind], field) for kind in kinds() if kind in shown for field in _options(kind)]
    places += [("exhibits", "kl", "kind"), ("exhibits", "kl")] * 6
    places += [(field,) for field in whole] + [("looks", "grpo", field) for field in ("label", "color", "marker")]
    workflow = synthetic.workflow_with(tmp_path, whole)
    for place in places:
        value = rng.choice(BAD)
        study = json.loads(json.dumps(whole))
        at = study
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = value
        (workflow / "studies" / f"{STUDY}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        try:
            synthetic.plan_of(tmp_path, {}, workflow)
        except UserError as error:
            if "\n" in str(error):
                found.append(f"{place} = {value!r:.60}: several lines")
        except Exception as error:
            found.append(f"{place} = {value!r:.60}: {type(error).__name__}: {error!s:.200}")
    assert not found


def _options(kind: str) -> list[str]:
    return list(getattr(find(kind, Path("."), "x").module, "Options", ExhibitOptions).model_fields)


TOO_LARGE = [
    ({"models": {"toy": {"toy": {"layers": 10**9}}}}, "layers: input should be less than or equal to 200"),
    ({"models": {"toy": {"toy": {"layers": 200, "hidden_size": 9216, "heads": 96}}}}, "resources.base reserves 3.0 GB"),
    ({"models": {"toy": {"toy": {"batch_size": 60000}}}}, "lower its layers, sizes, batch_size or sequence_length"),
    ({"world": {"train_rows": 10**7}}, "10,040,000 rows and texts needs 5.0 GB at least"),
    ({"evaluation": {"tasks": {"math_500": {"samples": 10**9}}}}, "less than or equal to 4096"),
    ({"evaluation": {"tasks": {"gsm8k": {"shots": 1000}}}}, "less than or equal to 100"),
    ({"evaluation_settings": {"batch_size": 10**9}}, "less than or equal to 1000000"),
    ({"models": {"toy": {"toy": {"max_position": 1}}}}, "greater than or equal to 64"),
    ({"models": {"toy": {"toy": {"sequence_length": 1}}}}, "greater than or equal to 8"),
    ({"resources": {"train": {"mem_mb": 5}}}, "resources.train"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "sentence"), TOO_LARGE, ids=lambda value: str(value)[:50])
def test_what_no_machine_holds_is_refused(overrides, sentence):
    with pytest.raises(UserError) as caught:
        planned({"overrides": overrides})
    assert sentence in str(caught.value)


def test_a_constant_of_another_kind_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    source = {"kind": "parquet", "path": "rows.parquet", "constants": {"answer": 3}}
    overrides = {"datasets": {"mine": {"source": source, "filter": {"max_tokens": 176}}}, "dataset": "mine"}
    with pytest.raises(UserError, match=r"source\.constants: answer is 3; it needs text"):
        planned({"overrides": overrides})


def test_a_start_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    from scalpel.plan import sizes

    plan = planned({})
    sizes.refuse_a_small_disk(plan, plan.steps)
    monkeypatch.setattr(sizes.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(UserError, match=r"GB are free at results/"):
        sizes.refuse_a_small_disk(plan, plan.steps)
    sizes.refuse_a_small_disk(plan, [])


def test_every_field_of_a_scale_is_walked():
    walked = {name for _, place, _ in cases() if place[0] == "overrides" for name in place[1:2]}
    assert walked >= set(Scale.model_fields)
