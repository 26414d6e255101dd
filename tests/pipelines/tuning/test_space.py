"""Spaces: what is drawn, what every trial computes, and what each mistake is told as, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from infra.errors import UserError
from pipelines import tune
from pipelines.config.compute_budget import compute, time_at
from pipelines.config.recipe import build_recipe, load_recipe
from pipelines.tuning.distributions import Distribution
from pipelines.tuning.report import to_markdown
from pipelines.tuning.space import load_space, shipped
from pipelines.tuning.study import Study
from pipelines.tuning.trial_recipes import StudyPlan
from tests.pipelines.conftest import Coloured
from tests.pipelines.tuning.conftest import Spaces


@pytest.mark.parametrize("name", shipped())
def test_shipped_spaces_have_recipes_that_can_be_trained(name: str) -> None:
    own_images = {"model.num_classes": 10} if name.startswith("my_") else {}  # else the data set tells
    StudyPlan(load_space(name), own_images).check()


def test_the_number_of_classes_comes_from_the_data_set(colours: Coloured) -> None:
    plan = StudyPlan(load_space("my_images"), {"data.uri": colours.store.uri})
    plan.check()
    assert plan.base.model.num_classes == 3


def test_a_space_of_a_data_set_that_is_not_there_yet_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepare the data set first"):
        StudyPlan(load_space("my_images"), {"data.uri": str(tmp_path / "none")}).check()


def test_values_of_shares() -> None:
    shares = (0.0, 0.5, 0.999999)
    assert [Distribution(int_uniform=(1, 3)).at(share) for share in shares] == [1, 2, 3]
    assert [Distribution(choice=("a", "b")).at(share) for share in shares] == ["a", "b", "b"]
    assert Distribution(log_uniform=(0.01, 1.0)).at(0.5) == pytest.approx(0.1)
    assert Distribution(uniform=(2.0, 4.0)).at(0.25) == 2.5
    assert Distribution(log_uniform=(0.01, 1.0), points=3).grid() == (0.01, 0.1, 1.0)
    assert Distribution(int_uniform=(1, 3)).grid() == (1, 2, 3)
    assert Distribution(uniform=(0.0, 0.3), points=4).grid() == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_every_trial_computes_the_same_and_reports_after_equal_shares_of_it(spaces: Spaces) -> None:
    plan = spaces.plan()
    shallow, deep = (
        plan.recipe({"optim.lr_per_256": 1.0, "model.depths": depths}) for depths in ([1, 1, 1], [2, 1, 1])
    )
    assert compute(deep) == pytest.approx(compute(shallow), rel=0.05)  # whole steps
    assert (shallow.schedule.length, deep.schedule.length) == (20, 14)
    assert shallow.evaluation_steps(30) == [5, 10, 15, 20]
    assert deep.evaluation_steps(30) == [4, 7, 10, 14]


def test_compute_of_a_curriculum_counts_each_phase() -> None:
    plain = load_recipe("cifar10_resnet20")
    grown = build_recipe(
        {},
        {
            **plain.flat(),
            "model.name": "resnet44",
            "curriculum.until": [32_000],
            "curriculum.model": ["resnet20", "resnet44"],
        },
    )
    deep = build_recipe({}, {**plain.flat(), "model.name": "resnet44"})
    assert compute(grown) == pytest.approx((compute(plain) + compute(deep)) / 2)
    share = compute(plain) / 2 / compute(grown)  # of the first half, which is the shallow one
    assert time_at(grown, share) == pytest.approx(32_000)
    assert time_at(grown, 1.0) == pytest.approx(64_000)


def test_the_winner_s_recipe_is_train_py_s_own(spaces: Spaces) -> None:
    plan = spaces.plan("[final]\ncompute = 2.0\nset.run.register_as = 'colours'")
    recipe = plan.final({"optim.lr_per_256": 0.5, "model.depths": [1, 1, 1]})
    assert (recipe.schedule.length, recipe.optim.lr_per_256) == (40, 0.5)
    assert (recipe.run.eval_at, recipe.run.name, recipe.run.register_as) == ((), "", "colours")


BAD = {
    "an unknown key": (
        {'"optim.lr_per_256"': '"optim.lr_per_265"'},
        "",
        r"unknown key optim\.lr_per_265 \(did you mean optim\.lr_per_256\?\)",
    ),
    "a value that cannot be": (
        {"[2, 1, 1]": "[2, 0, 1]"},
        "",
        r"with optim\.lr_per_256 = 0\.1, model\.depths = \[2, 0, 1\]: .*model\.depths must be empty or 3 positive",
    ),
    "a typing error in a table": (
        {},
        '[scheduler]\nname = "asha"\nratio = 3',
        r"unknown key scheduler\.ratio.*keys of scheduler: name, grace, eta",
    ),
    "an unknown scheduler": ({}, '[scheduler]\nname = "ahsa"', r"scheduler\.name: input should be 'none', 'asha'"),
    "two distributions": (
        {"points = 3": "uniform = [0, 1]"},
        "",
        r"space\.optim\.lr_per_256: give exactly one of .*: got uniform, log_uniform",
    ),
    "an empty range": ({"[0.1, 4.0]": "[4.0, 0.1]"}, "", r"log_uniform must be \[low, high\] with low below high"),
    "a grid of a range without points": (
        {", points = 3": "", "trials = 4": ""},
        '[searcher]\nname = "grid"',
        r"space\.optim\.lr_per_256: a grid needs the number of points in a range",
    ),
    "a grid with a number of trials": ({}, '[searcher]\nname = "grid"', r"budget\.trials must be left out for a grid"),
    "a name that the study gives": (
        {'"model.depths" = {choice = [[1, 1, 1], [2, 1, 1]]}': '"run.name" = {choice = ["a", "b"]}'},
        "",
        r"run\.name cannot be searched: a study names its runs",
    ),
    "a population over a searcher": (
        {},
        '[scheduler]\nname = "pbt"\n[searcher]\nname = "tpe"',
        r'scheduler "pbt" needs searcher\.name = "random", got "tpe"',
    ),
    "two objectives at equal compute": (
        {},
        '[searcher]\nname = "tpe"\nobjectives = ["accuracy", "compute"]',
        r'"compute" needs budget\.equal_compute = false',
    ),
}


@pytest.mark.parametrize(("changes", "more", "line"), BAD.values(), ids=BAD)
def test_a_bad_space_is_refused_in_one_line(spaces: Spaces, changes: dict[str, str], more: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        spaces.plan(more, **changes)


def test_fewer_reports_than_epochs_are_refused(spaces: Spaces) -> None:
    plan = StudyPlan(load_space(str(spaces.write())), {"schedule.unit": "epochs"})
    with pytest.raises(UserError, match=r"budget\.reports = 4 is less than one per epoch: a trial has 20 epochs"):
        plan.check()


def test_a_trial_that_equal_compute_stretches_says_so(spaces: Spaces) -> None:
    """A shallower network than the recipe's trains longer than schedule.length."""
    deep = {"schedule.unit": "epochs", "schedule.length": 3, "model.depths": [2, 1, 1]}
    plan = StudyPlan(load_space(str(spaces.write())), deep)
    with pytest.raises(UserError) as told:
        plan.check()
    assert "a trial has 4.16 epochs with " in str(told.value)
    assert "depths = [1, 1, 1] at the compute of the recipe's 3 (budget.equal_compute)" in str(told.value)
    assert str(told.value).endswith("Set budget.reports = 5 or more")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[scheduler]\nname = "asha"\nreduction_factor = 3', r"reduction_factor \(did you mean scheduler\.eta\?\)"),
        ('[searcher]\nsearch_alg = "tpe"', r"search_alg \(did you mean searcher\.name\?\)"),
    ],
)
def test_keys_of_ray_tune_are_answered_with_ours(spaces: Spaces, more: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        spaces.plan(more)


def test_failed_trials_are_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a finished study says of them, and what --retry-failed makes of the ledger; nothing is trained here."""
    plan = Spaces(tmp_path, data="nowhere").plan(**{"trials = 4": "trials = 2"})
    study = Study(plan, Console(soft_wrap=True))
    for rate in (0.5, 1.0):
        trial = study.ledger.add({"optim.lr_per_256": rate, "model.depths": [1, 1, 1]}, 1.0)
        trial.state, trial.reason = "failed", "no manifest.json in nowhere"
        study.ledger.keep(trial)
    assert "(trial 000: no manifest.json in nowhere)" in to_markdown(plan, study.ledger.trials)
    study._remember({**study._state(), "run_id": "1", "delivered": study._delivery})
    assert study.run() == "1"
    told = " ".join(capsys.readouterr().out.split())
    assert "is finished: nothing to do. 2 of 2 trials failed (trial 000: no manifest.json in nowhere)" in told
    assert told.endswith("--retry-failed tries them again")
    monkeypatch.setattr(sys, "argv", ["tune.py", str(tmp_path / "study.toml"), "--list"])
    tune.main()
    listed = capsys.readouterr().out
    assert listed.count("failed") == 2 and "0.00%" not in listed
    monkeypatch.setattr(sys, "argv", ["tune.py", str(tmp_path / "study.toml")])
    with pytest.raises(UserError, match=r"no trial of study study has reported anything: no manifest.* --retry-failed"):
        tune.main()
    Study(plan, Console(quiet=True)).ledger.retry_failed()
    again = Study(plan, Console(quiet=True))
    assert [(trial.number, trial.state, trial.reason) for trial in again.ledger.interrupted] == [
        (0, "running", ""),
        (1, "running", ""),
    ]
    assert not again.over


def test_a_space_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"no space depth_fashon \(did you mean depth_fashion\?\)"):
        load_space("depth_fashon")
