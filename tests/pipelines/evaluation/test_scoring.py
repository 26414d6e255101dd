"""A split's score is exact: every image once, whoever reads it."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.capacity import evaluation_cpus
from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.data.shards.manifest import load_manifest
from pipelines.evaluation.classifier import ServedClassifier
from pipelines.evaluation.scoring import EvalData, eval_batches, example_images, score_blocks, score_model
from resnet_core.config import ModelConfig
from resnet_core.evaluation import evaluate
from resnet_core.models import build_model
from resnet_core.step import StepConfig
from tests.pipelines.conftest import SIZE, Coloured, hand_computed

CPU = torch.device("cpu")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture
def classifier(colours: Coloured, weights: dict[str, torch.Tensor]) -> ServedClassifier:
    return ServedClassifier.from_checkpoint(colours.checkpoint(weights, {}))


@pytest.mark.usefixtures("in_process")
def test_a_score_is_what_one_computes_by_hand(colours: Coloured, weights: dict[str, torch.Tensor]) -> None:
    swapped = {name: weights[name][[1, 0, 2]] / 10 for name in ("fc.weight", "fc.bias")}
    muddled = {**weights, **swapped}
    expected = hand_computed(colours, muddled)
    assert expected["accuracy"] == 1 / 3
    score = score_model(ServedClassifier.from_checkpoint(colours.checkpoint(muddled, {})).predict, colours.data)
    assert (score.count, score.data_digest) == (30, colours.manifest.digest)
    assert (score.accuracy, score.top5_accuracy) == (expected["accuracy"], 1.0)
    assert score.loss == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.usefixtures("in_process")
def test_a_certain_and_wrong_answer_has_a_finite_loss(colours: Coloured) -> None:
    def always_azure(images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([1, 0, 0], dtype=np.float32), (len(images), 1))

    score = score_model(always_azure, colours.data)
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.loss == pytest.approx(2 / 3 * 87.3365, rel=1e-4)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("batch_size", [4, 1000])
def test_ranks_add_up_to_the_whole(colours: Coloured, weights: dict[str, torch.Tensor], batch_size: int) -> None:
    model = build_model(ModelConfig(name="resnet20", num_classes=3))
    model.load_state_dict(weights)

    def score(rank: int, world_size: int):
        data = dataclasses.replace(colours.data, rank=rank, world_size=world_size)
        batches = list(eval_batches(data, CPU, batch_size))
        assert max(len(batch.labels_B) for batch in batches) <= batch_size
        sums, _ = evaluate(model, batches, StepConfig(), num_classes=3)
        return sums, [sample for batch in batches for sample in batch.ids_B.tolist()]

    whole, ids = score(0, 1)
    parts = [score(rank, 3) for rank in range(3)]
    assert ids == list(range(30, 60))
    assert [sample for _, part in parts for sample in part] == ids
    assert [len(part) for _, part in parts] == [10, 10, 10]
    assert torch.equal(sum(sums.confusion for sums, _ in parts), whole.confusion)
    assert float(sum(sums.loss for sums, _ in parts)) == pytest.approx(float(whole.loss), rel=1e-5)


@pytest.mark.usefixtures("ray_local")
def test_tasks_give_what_this_process_would(colours: Coloured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.scoring._ITEM_ROWS", (4, 4))
    data = dataclasses.replace(colours.data, window=1)
    assert len(data.items(data.item_rows)) == 2  # more than the window holds
    blocks = list(score_blocks(data))
    for name, column in colours.columns("test").items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), column)
    batches = list(eval_batches(colours.data, CPU, 3))
    batches[0].images_BHWC.zero_()  # blocks of the object store are read-only, batches are not
    assert sum(len(batch.labels_B) for batch in batches) == 30


@pytest.mark.usefixtures("in_process")
def test_a_gpu_is_sent_what_it_scores_without_a_wait_of_the_host(
    colours: Coloured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[bool] = []
    sent: list[tuple[torch.Tensor, torch.device, bool]] = []
    empty = torch.empty

    def noted(*shape, dtype, pin_memory):
        pinned.append(pin_memory)
        return empty(*shape, dtype=dtype)

    def send(tensor, device, non_blocking=False):
        sent.append((tensor, device, non_blocking))
        return tensor

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(torch.Tensor, "to", send)
    batch = next(eval_batches(colours.data, torch.device("cuda:1"), 3))
    assert pinned == [True] * 3
    assert [(device, non_blocking) for _, device, non_blocking in sent] == [(torch.device("cuda:1"), True)] * 3
    assert batch.images_BHWC is sent[0][0] and batch.images_BHWC.shape == (3, SIZE, SIZE, 3)


@pytest.mark.usefixtures("ray_local")
def test_a_damaged_shard_is_one_line_also_from_a_task(colours: Coloured, tmp_path: Path) -> None:
    shutil.copytree(colours.store.uri, tmp_path / "data")
    shard = colours.manifest.shards_of("test")[-1]
    with (tmp_path / "data" / shard.path).open("r+b") as file:
        file.seek(shard.groups[-1].start)
        file.write(b"\0\0\0\0")
    store = LocalStore(uri=str(tmp_path / "data"))
    data = EvalData(store=store, manifest=load_manifest(store), crop=colours.data.crop)
    with pytest.raises(UserError, match=rf"^shard {shard.path} in .*: row group \d+ has sha256 .* prepare again$"):
        list(score_blocks(data))


def test_example_images(colours: Coloured) -> None:
    images = example_images(colours.data, 2)
    assert images.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(images, colours.columns("test")["image"][:2])
    assert len(example_images(colours.data, 100)) == 100


def test_the_classifier_has_its_preprocessing_inside(classifier: ServedClassifier, colours: Coloured) -> None:
    rows = colours.columns("test")
    probabilities = classifier.train(False).predict(rows["image"])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities.argmax(axis=1) == rows["label"]).all()
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_an_evaluation_begins_while_data_tasks_hold_all_that_they_may(colours: Coloured, ray_local: None) -> None:
    """A data task that waits for its consumer holds its CPUs for as long, and the run waits for its evaluation."""
    import ray

    share = evaluation_cpus()

    @ray.remote(num_cpus=1 - share)
    class Waiting:
        def begun(self) -> bool:
            return True

    waiting = [Waiting.remote() for _ in range(6)]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as beside:
        try:
            begun, others = ray.wait([each.begun.remote() for each in waiting], num_returns=4, timeout=120)
            assert (len(begun), len(others)) == (4, 2)
            data = dataclasses.replace(colours.data, task_cpus=share)
            ids = beside.submit(lambda: [int(each) for block in score_blocks(data) for each in block["id"]])
            assert len(ids.result(timeout=120)) == 30
            assert not ray.wait(others, timeout=0)[0]
        finally:
            for each in waiting:
                ray.kill(each)
