"""Rare classes: labels read without images, class weights, and balanced draws that three kills do not change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.utils.class_weight import compute_class_weight

from infra.errors import UserError
from infra.storage import LocalStore, open_store
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.data.order.draws import Balanced
from pipelines.data.order.ledger import Ledger
from pipelines.data.shards.labels import LABELS, read_labels, split_labels
from pipelines.training.batches import RankBatches
from pipelines.training.driver import train
from pipelines.training.imbalance import automatic_weights, class_balance
from tests.pipelines.conftest import COLOURS, Coloured, picture, prepared

PER_CLASS = {"azure": 60, "lime": 20, "scarlet": 6}  # half of them for the test


@pytest.fixture(scope="session")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Coloured:
    root = tmp_path_factory.mktemp("rare")
    for place, (name, count) in enumerate(PER_CLASS.items()):
        (root / "images" / name).mkdir(parents=True)
        for index in range(count):
            picture(COLOURS[name], 1000 * place + index).save(root / "images" / name / f"{index:03d}.png")
    return prepared(root)


@pytest.fixture
def recipe_of(rare: Coloured, tmp_path: Path) -> Callable[..., Recipe]:
    def make(**settings: Any) -> Recipe:
        values = {key.replace("__", "."): value for key, value in settings.items()}
        return build_recipe({}, {**rare.recipe, "run.home": str(tmp_path), **values})

    return make


def test_labels_are_those_of_the_images_and_stay_with_the_run(rare: Coloured, tmp_path: Path) -> None:
    expected = rare.columns("train")["label"]
    assert read_labels(rare.store, rare.manifest, "train").tolist() == expected.tolist()
    run = LocalStore(uri=str(tmp_path))
    split_labels(run, rare.store, rare.manifest, "train")
    gone = LocalStore(uri=str(tmp_path / "gone"))
    assert split_labels(run, gone, rare.manifest, "train").tolist() == expected.tolist()
    run.write(LABELS, b"damaged")
    assert split_labels(run, rare.store, rare.manifest, "train").tolist() == expected.tolist()
    with pytest.raises(UserError, match="is missing in"):
        read_labels(gone, rare.manifest, "train")


def test_automatic_weights_are_scikit_learns_balanced_ones(rare: Coloured, recipe_of: Callable[..., Recipe]) -> None:
    labels = rare.columns("train")["label"]
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    recipe, run = recipe_of(loss__class_weights="auto"), open_store(str(Path(rare.store.uri).parent / "run"))
    assert class_balance(recipe, rare.manifest, run).class_weights == pytest.approx(theirs.tolist(), rel=1e-12)
    assert automatic_weights(np.array([8, 0, 2])) == pytest.approx((10 / 16, 1.0, 10 / 4))
    both = class_balance(recipe_of(loss__class_weights="auto", data__sampling="balanced"), rare.manifest, run)
    assert both.class_weights == pytest.approx((1.0, 1.0, 1.0), abs=0.05)  # of the draws, which are balanced already
    table = class_balance(recipe_of(loss__class_weights={"lime": 3.0}), rare.manifest, run)
    assert table.class_weights == (1.0, 3.0, 1.0)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"data__sampling": "weighted"}, "data.sampling: input should be 'uniform' or 'balanced'"),
    ({"data__sampling_power": 2.0}, "data.sampling_power must be in"),
    ({"data__sampling_passes": 0}, "data.sampling_passes must be at least 1"),
    ({"loss__class_weights": "balanced"}, "loss.class_weights"),
    ({"loss__class_weights": {"lime": 0.0}}, "loss.class_weights.lime must be positive"),
    ({"loss__focal_gamma": -1.0}, "loss.focal_gamma must be finite, at least 0"),
    ({"run__metric": "f1"}, "run.metric: input should be"),
]


@pytest.mark.parametrize(("settings", "error"), BAD)
def test_a_bad_key_is_one_line(recipe_of: Callable[..., Recipe], settings: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error) as caught:
        recipe_of(**settings)
    assert "\n" not in str(caught.value)


def test_a_weight_for_a_class_that_is_not_there_names_the_nearest(
    rare: Coloured, recipe_of: Callable[..., Recipe]
) -> None:
    recipe = recipe_of(loss__class_weights={"scarlett": 3.0})
    with pytest.raises(UserError, match=r"'scarlett', which data set .* does not have.*scarlet"):
        train(recipe, Console(quiet=True))


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_three_kills_leave_every_class_its_draws_of_each_epoch(
    rare: Coloured, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = {
        "data__sampling": "balanced", "data__sampling_passes": 3, "optim__global_batch_size": 8,
        "schedule__length": 3, "run__num_workers": 0, "run__name": "draws", "run__checkpoint_every_steps": 2,
        "loss__focal_gamma": 2.0, "run__metric": "balanced_accuracy",
    }  # fmt: skip
    recipe, rows = recipe_of(**settings), rare.manifest.splits["train"]
    trained: dict[int, list[tuple[int, int, int]]] = {}  # (epoch, draw, label) by step; a repeated step counts once
    made, written = RankBatches._rank_batch, RunFolder.write

    def remember(self: RankBatches, blocks: list[dict[str, Any]], step: int) -> Any:
        columns = [zip(*(block[name].tolist() for name in ("epoch", "draw", "label")), strict=True) for block in blocks]
        trained[step] = [row for column in columns for row in column]
        return made(self, blocks, step)

    def die_at(step: int) -> Callable[..., None]:
        def write(self: RunFolder, checkpoint: Any, *, keep_best: int) -> None:
            written(self, checkpoint, keep_best=keep_best)
            if checkpoint.step == step:
                raise OSError("power cut")

        return write

    monkeypatch.setattr(RankBatches, "_rank_batch", remember)
    for step in (2, 6, 10):
        monkeypatch.setattr(RunFolder, "write", die_at(step))
        with pytest.raises(Exception, match="power cut"):
            train(recipe, Console(quiet=True))
    monkeypatch.setattr(RunFolder, "write", written)
    outcome = train(recipe, Console(quiet=True))
    assert outcome.metric == "balanced_accuracy" and outcome.value > 0
    draws: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for epoch, draw, label in (row for step in range(outcome.step) for row in trained[step]):
        draws[epoch].append((draw, label))
    quotas = Balanced(labels=rare.columns("train")["label"], passes=3).quotas()
    assert sorted(quotas.tolist()) == [14, 14, 15] and int(quotas.sum()) == rows
    for epoch in (0, 1):
        assert sorted(draw for draw, _ in draws[epoch]) == list(range(rows))
        assert Counter(label for _, label in draws[epoch]) == dict(enumerate(quotas.tolist()))
    newest = RunFolder(open_store(recipe.run.home).sub("draws")).newest(pytest.fail)
    assert newest is not None and Ledger.from_arrays(newest.ledger).complete >= 2
