"""Which split chooses the best checkpoint, and which one is scored once at the end."""

from __future__ import annotations

import dataclasses

import pytest
from mlflow import MlflowClient
from rich.console import Console

from infra.storage import open_store
from infra.tracking.tracker import resolve_tracking
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import load_recipe
from pipelines.evaluation.models import Request, open_targets
from pipelines.evaluation.run_checkpoint import recipe_of
from pipelines.training.driver import train
from pipelines.training.result import Outcome

SHORT = {
    "schedule.length": 0.6,  # epochs
    "schedule.warmup": 0,
    "data.image_size": 16,
    "run.num_workers": 0,
    "run.eval_at": [0.2, 0.4],
    "run.register_as": "",
}


@pytest.fixture
def recipe_for(tmp_path, tmp_path_factory, ray_local, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(validation: float, **more: object):
        data = tmp_path_factory.getbasetemp() / f"mnist5k-validation-{validation}"  # prepared once
        paths = {"data.uri": str(data), "run.home": str(tmp_path), "prepare.validation": validation}
        return load_recipe("mnist5k", {**SHORT, **paths, **more})

    return make


def history(recipe, outcome, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(resolve_tracking(recipe.run.home).uri)
    return [(point.step, point.value) for point in client.get_metric_history(outcome.run_id, key)]


def folder_of(recipe) -> RunFolder:
    return RunFolder(open_store(recipe.run.home).sub(recipe.run_name))


def test_the_validation_split_chooses_and_the_test_split_is_scored_once(recipe_for):
    recipe = recipe_for(0.1)
    outcome = train(recipe, Console(quiet=True))
    seen = history(recipe, outcome, "validation/accuracy")
    assert len(seen) == 3 and seen[-1][0] == outcome.step
    best = max(seen, key=lambda point: (point[1], point[0]))
    assert (outcome.best_step, outcome.chosen_accuracy) == best
    assert (outcome.chosen_on, outcome.chosen_images, outcome.images) == ("validation", 400, 1000)
    assert history(recipe, outcome, "test/accuracy") == [(outcome.best_step, outcome.accuracy)]
    run_folder = str(folder_of(recipe).store.uri)
    (target,) = open_targets(Request(targets=(run_folder,)), pytest.fail)  # what evaluate.py scores by default
    assert target.data.split == "test"
    from pipelines.evaluation.scoring import score_model

    assert score_model(target.model.open("cpu"), target.data).accuracy == outcome.accuracy
    chosen, tested = outcome.lines()
    assert f"step {best[0]} of {outcome.step}" in chosen and "400 images of the validation split" in chosen
    assert tested.startswith(f"test accuracy    {outcome.accuracy:.2%}") and tested.endswith(
        "1,000 images, scored once"
    )


def test_without_a_validation_split_the_test_split_chooses_and_the_run_says_so(recipe_for):
    recipe = recipe_for(0.0)
    outcome = train(recipe, Console(quiet=True))
    seen = history(recipe, outcome, "test/accuracy")
    assert len(seen) == 3 and not history(recipe, outcome, "validation/accuracy")
    assert (outcome.best_step, outcome.accuracy) == max(seen, key=lambda point: (point[1], point[0]))
    (line,) = outcome.lines()
    assert "which the test split itself chose" in line


def test_a_split_that_the_data_set_lacks_is_refused_where_the_recipe_names_it(recipe_for):
    from infra.errors import UserError

    with pytest.raises(UserError, match="has no split 'dev': it has"):
        train(recipe_for(0.0, **{"data.eval_split": "dev"}), Console(quiet=True))


def test_splits_do_not_change_a_run_s_name(recipe_for):
    assert recipe_for(0.1).run_name == recipe_for(0.1, **{"data.eval_split": "test"}).run_name


def test_a_checkpoint_from_before_the_validation_split_is_scored_on_the_split_it_was_evaluated_on(recipe_for):
    recipe = recipe_for(0.0)
    train(recipe, Console(quiet=True))
    checkpoint = folder_of(recipe).best(pytest.fail)
    assert checkpoint
    stored = {key: value for key, value in checkpoint.recipe.items() if key != "data.test_split"}
    old = dataclasses.replace(checkpoint, recipe={**stored, "data.eval_split": "holdout"})
    assert recipe_of(old).data.test_split == "holdout"


def test_an_outcome_that_was_written_before_has_its_one_line():
    old = Outcome.from_json({"run_id": "a", "step": 500, "accuracy": 0.987})
    assert old.lines() == ["test accuracy 98.70% after 500 steps"]
