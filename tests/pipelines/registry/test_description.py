"""What people read in MLflow and on the terminal of a run and a version."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UserError
from infra.registry.champion import champion, promote
from infra.registry.champion_log import log_of
from infra.tracking.client import connect
from pipelines.cli.verdict import promote_command, registered, verdict
from pipelines.config.recipe import build_recipe
from pipelines.registry.champion import chosen_model, described
from pipelines.registry.description import folder_name
from pipelines.training.result import Outcome, curves_of, run_note
from tests.pipelines.conftest import Coloured
from tests.pipelines.registered import Registry

REASON = "250 test images are too few to rule out a loss of 1 point (measured +0.8, could be -3.7)"


def test_a_run_s_description(colours: Coloured) -> None:
    recipe = build_recipe({}, colours.recipe)
    assert run_note(recipe, colours.manifest).startswith("Under way.\n\n- Data: `data`: 30 train, 30 test images")
    outcome = Outcome(
        run_id="r",
        step=30,
        best_step=20,
        accuracy=0.9,
        images=30,
        chosen_on="validation",
        chosen_accuracy=0.95,
        chosen_images=20,
        model="models:/colours/2",
        reason=REASON,
    )
    digest = colours.manifest.name
    assert run_note(recipe, colours.manifest, outcome) == (
        "**accuracy 90.00%** of the checkpoint of step 20 (74.38% to 96.54% at 95% confidence, 30 images)\n"
        "on the test split, scored once; the validation split chose the checkpoint (95.00% on 20 images)\n\n"
        f"Registered as `models:/colours/2`, not champion: {REASON}\n\n"
        f"- Data: `data`: 30 train, 30 test images, 3 classes (`{colours.store.uri}`, digest `{digest}`)\n"
        "- Network: `resnet20` at 16x16 pixels\n"
        "- Training: recipe `colours`, 90 epochs, batches of 256"
    )


def test_the_description_of_a_run_whose_test_split_chose(colours: Coloured) -> None:
    outcome = Outcome(run_id="r", step=30, best_step=20, accuracy=0.9, images=30, chosen_accuracy=0.9, chosen_images=30)
    assert "\non the test split, which also chose the checkpoint\n\n- Data: " in run_note(
        build_recipe({}, colours.recipe), colours.manifest, outcome
    )


def test_a_data_set_has_the_name_of_its_folder() -> None:
    assert [folder_name(uri) for uri in ("/home/me/data/photos", "s3://bucket/sets/photos/", "s3://photos")] == [
        "photos"
    ] * 3


def test_curves_of_few_classes_and_one_worker(colours: Coloured) -> None:
    recipe = build_recipe({}, {**colours.recipe, "run.num_workers": 1})
    metrics = {"test/accuracy": 0.5, "test/top5_accuracy": 1.0, "data/read_share": 0.1, "data/read_share_max": 0.1}
    drawn = curves_of(recipe, colours.manifest).of(metrics, ())
    assert drawn == {"test/accuracy": 0.5, "waiting_for_data/read_share": 0.1}
    assert sorted([*drawn, "train/loss", "validation/loss"])[-1] == "waiting_for_data/read_share"
    written = curves_of(recipe, colours.manifest).of({"checkpoint/seconds": 0.2, "checkpoint/retries": 0.0}, ())
    assert written == {"writing_checkpoint/seconds": 0.2}  # after all others, and no curve of zeros
    several = build_recipe({}, {**colours.recipe, "run.num_workers": 2})
    assert "waiting_for_data/read_share_max" in curves_of(several, colours.manifest).of(metrics, ())


def test_a_version_s_description_ends_with_what_the_gate_says(registry: Registry) -> None:
    client = connect(registry.tracking)
    first, second = (str(client.get_model_version("served", str(number)).description) for number in (1, 2))
    assert first.startswith("**test accuracy 100.00%** (88.65% to 100.00% at 95% confidence, 30 images), checkpoint of")
    assert first.endswith("\n\n**Gate:** champion: there is no champion yet")
    assert "- Network: `resnet20` at 16x16 pixels" in first
    assert "\n\n**Gate:** not champion: less accurate than models:/served/1: -66.67 points on 30 test images" in second
    assert second.count("**Gate:**") == 1


def test_the_lines_of_a_version_that_is_not_champion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs, uri = str(tmp_path / "runs"), "models:/photos/2"
    assert verdict(uri, champion=False, reason=REASON) == f"registered as version 2, not champion: {REASON}"
    assert registered(uri, champion=False, reason=REASON) == f"models:/photos/2, not champion: {REASON}"
    assert registered(uri, champion=True, reason="") == "models:/photos/2 (champion)"
    assert promote_command(uri, runs).endswith("pipelines/register.py --promote photos 2")
    assert promote_command(uri, "/other/my runs?").endswith("--promote photos 2 --home '/other/my runs?'")


def test_which_model_answers(registry: Registry) -> None:
    """Another model's champion does not answer for one whose alias was removed."""
    tracking, client = registry.tracking, connect(registry.tracking)
    present = champion(tracking, "served")
    assert present is not None
    uri = chosen_model(tracking, None)
    assert uri == "models:/served@champion"
    assert described(uri, present) == f"models:/served/{present.number} (champion)"
    assert described(present.uri, present) == present.uri
    log_of(client, tracking, "empty")  # a name without versions stands in nobody's way
    assert chosen_model(tracking, None) == uri
    log_of(client, tracking, "other")
    client.create_model_version("other", "/somewhere")
    try:
        with pytest.raises(UserError) as caught:
            chosen_model(tracking, None)
        assert str(caught.value) == (
            "there are several models, name one with --model: models:/served@champion, models:/other/1 (not champion)"
        )
        client.delete_registered_model_alias("served", "champion")
        with pytest.raises(UserError, match=r"has no champion: .*; there is models:/other/1 \(not champion\)"):
            chosen_model(tracking, None)
    finally:
        for name in ("other", "empty"):
            client.delete_registered_model(name)
        client.set_registered_model_alias("served", "champion", str(present.number))
        promote(tracking, registry.first)
