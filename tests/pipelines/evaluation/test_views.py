"""Scores of several views of each image are what the plainest loop computes, whoever reads the images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.evaluation.classifier import ServedClassifier
from pipelines.evaluation.model_source import ensemble
from pipelines.evaluation.scoring import (
    BatchLimit,
    EvalCrops,
    EvalData,
    ViewName,
    score_blocks,
    score_model,
    sum_scores,
)
from resnet_core.config import AugmentConfig, ModelConfig
from resnet_core.evaluation import EvalSums
from resnet_core.evaluation.views import Dense
from resnet_core.models import ResNet, build_model
from tests.pipelines.conftest import COLOURS, Coloured, prepared

S, R = 16, 20
SCALES = (16, 20, 27)
SHAPES = ((20, 23), (25, 20), (31, 18))  # width, height
TEST_IMAGES = {"azure": 12, "lime": 10, "scarlet": 9}  # 31: neither 2 nor 3 ranks share them evenly
VIEWS: tuple[ViewName, ...] = ("centre", "flip", "ten_crop", "multi_scale", "multi_scale_flip")


def blend(seed: int) -> Image.Image:
    """A noisy picture that goes from one colour to another, so that its views differ."""
    rng = np.random.default_rng(seed)
    width, height = SHAPES[seed % len(SHAPES)]
    start, end = rng.permutation(np.array(list(COLOURS.values())))[:2]
    along = np.linspace(0, 1, width)[None, :, None]
    noise = rng.normal(0, 30, (height, width, 3))
    return Image.fromarray(np.clip(start * (1 - along) + end * along + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def blends(tmp_path_factory: pytest.TempPathFactory) -> Coloured:
    """31 test images of 3 shapes; the few row groups hold rows of several ranks."""
    root = tmp_path_factory.mktemp("blends")
    for split, counts in (("train", dict.fromkeys(TEST_IMAGES, 2)), ("val", TEST_IMAGES)):
        for place, (name, count) in enumerate(counts.items()):
            (root / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                blend(100 * place + index).save(root / "images" / split / name / f"{index:03d}.png")
    return prepared(root)


@pytest.fixture(scope="module")
def model(weights: dict[str, torch.Tensor]) -> ResNet:
    network = build_model(ModelConfig(name="resnet20", num_classes=3)).eval()
    network.load_state_dict(weights)
    return network


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, in forward passes of 4 images and, where images are whole, tasks of about 5."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(BatchLimit, "rows_of", lambda self, block: 4)
    monkeypatch.setattr("pipelines.evaluation.scoring._WHOLE_BYTES", 5 * 3 * 4 // 3 * sum(scale**2 for scale in SCALES))


def data_of(blends: Coloured, name: ViewName, rank: int = 0, world_size: int = 1) -> EvalData:
    crop = dataclasses.replace(blends.data.crop, image_size=S, eval_resize=R, decoder="exact")  # as by hand
    views = EvalCrops(name=name, scales=SCALES if name.startswith("multi") else ())
    return dataclasses.replace(blends.data, crop=crop, views=views, rank=rank, world_size=world_size)


def predictor(model: ResNet, name: ViewName):
    """As `pipelines.evaluation.models` builds it."""
    network: nn.Module = Dense(model, S) if name.startswith("multi") else model
    return ServedClassifier(network, AugmentConfig()).predict


# The plainest loop: one picture, one view, one position at a time.


def resized(picture: Image.Image, shorter: int) -> Image.Image:
    short = min(picture.size)
    size = (picture.width * shorter // short, picture.height * shorter // short)
    return picture.resize(size, Image.Resampling.BILINEAR)


def window(picture: Image.Image, left: int, top: int, size: int = S) -> Image.Image:
    return picture.crop((left, top, left + size, top + size))


def centred(picture: Image.Image, size: int) -> Image.Image:
    return window(picture, round((picture.width - size) / 2), round((picture.height - size) / 2), size)


def pictures(picture: Image.Image, name: ViewName) -> list[Image.Image]:
    if name.startswith("multi"):
        views = [resized(picture, scale) for scale in SCALES]
    elif name == "ten_crop":
        square = centred(resized(picture, R), R)
        far = R - S
        views = [window(square, x, y) for x, y in ((0, 0), (far, 0), (0, far), (far, far), (far // 2, far // 2))]
    else:
        views = [centred(resized(picture, R), S)]
    flipped = name in ("flip", "ten_crop", "multi_scale_flip")
    return [*views, *(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views)] if flipped else views


def probabilities(model: ResNet, picture: Image.Image) -> torch.Tensor:
    """Averaged over the positions of the crop, each a window of 4x4 of the feature map; a crop has one."""
    augment = AugmentConfig()
    pixels = torch.from_numpy(np.array(picture)) / 255
    image = ((pixels - torch.tensor(augment.mean)) / torch.tensor(augment.std)).permute(2, 0, 1)[None]
    [features] = list(model.features(image).values())[-1]
    _, height, width = features.shape
    parts = [features[:, y : y + 4, x : x + 4] for y in range(height - 3) for x in range(width - 3)]
    return torch.stack([model.fc(part.mean(dim=(1, 2))).softmax(0) for part in parts]).mean(0).double()


@torch.no_grad()
def by_hand(blends: Coloured, models: list[ResNet], name: ViewName) -> tuple[list[list[int]], float, list[float]]:
    """(confusion matrix, sum of losses, confidence of every image)."""
    confusion, loss, confidences = [[0] * 3 for _ in range(3)], 0.0, []
    for label, colour in enumerate(TEST_IMAGES):
        for file in sorted((Path(blends.store.uri).parent / "images" / "val" / colour).iterdir()):
            views = pictures(Image.open(file), name)
            found = torch.stack([probabilities(model, view) for model in models for view in views]).mean(0)
            confusion[label][int(found.argmax())] += 1
            loss -= float(found[label].log())
            confidences.append(float(found.max()))
    return confusion, loss, confidences


def total(parts: list[EvalSums]) -> EvalSums:
    """What `all_reduce` makes of the sums of ranks."""
    sums = EvalSums(3, torch.device("cpu"))
    for part in parts:
        sums.loss += part.loss
        sums.top5 += part.top5
        sums.confusion += part.confusion
        sums.calibration += part.calibration
    return sums


@pytest.mark.parametrize("name", VIEWS)
def test_one_two_and_three_shards_add_up_to_the_plainest_loop(blends: Coloured, model: ResNet, name: ViewName) -> None:
    confusion, loss, _ = by_hand(blends, [model], name)
    assert 0 < sum(confusion[label][label] for label in range(3)) < 31
    for world_size in (1, 2, 3):
        shares = [data_of(blends, name, rank, world_size) for rank in range(world_size)]
        sums = total([sum_scores(predictor(model, name), share) for share in shares])
        assert sums.confusion.tolist() == confusion
        assert int(sums.top5) == 31
        assert float(sums.loss) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["centre", "ten_crop", "multi_scale"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_every_image_is_read_by_one_rank(blends: Coloured, name: ViewName, world_size: int) -> None:
    shares = [
        [int(sample) for block in score_blocks(data_of(blends, name, rank, world_size)) for sample in block["id"]]
        for rank in range(world_size)
    ]
    start = blends.manifest.split_start("test")
    assert sorted(sample for share in shares for sample in share) == list(range(start, start + 31))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_of_other_ranks_are_masked_out(blends: Coloured) -> None:
    items = [item for rank in range(3) for item in data_of(blends, "ten_crop", rank, 3).items(64)]
    assert any(item.skip for item in items)
    assert sum(item.rows for item in items) == 31
    parts = [data_of(blends, "multi_scale", rank, 3) for rank in range(3)]
    assert all(len(part.items(part.item_rows)) > 1 for part in parts)  # no task holds a whole row group


def test_whole_images_are_grouped_by_shape_and_not_padded(blends: Coloured) -> None:
    shapes = {block["image_27"].shape[1:] for block in score_blocks(data_of(blends, "multi_scale"))}
    assert shapes == {(31, 27, 3), (27, 33, 3), (27, 46, 3)}


def test_a_score_has_calibration_and_classes(blends: Coloured, model: ResNet) -> None:
    confusion, loss, confidences = by_hand(blends, [model], "ten_crop")
    score = score_model(predictor(model, "ten_crop"), data_of(blends, "ten_crop"))
    assert (score.count, score.class_counts) == (31, (12, 10, 9))
    assert score.class_correct == tuple(confusion[label][label] for label in range(3))
    assert score.class_accuracy == tuple(confusion[i][i] / count for i, count in enumerate(TEST_IMAGES.values()))
    assert score.loss == pytest.approx(loss / 31, rel=1e-5)
    mean_gap = abs(score.accuracy - sum(confidences) / 31)
    assert mean_gap <= score.calibration_error <= 1  # bins cannot hide more than the mean does


def test_an_ensemble_averages_probabilities(blends: Coloured, model: ResNet) -> None:
    torch.manual_seed(8)
    other = build_model(ModelConfig(name="resnet20", num_classes=3)).eval()
    confusion, loss, _ = by_hand(blends, [model, other], "ten_crop")
    both = ensemble([predictor(one, "ten_crop") for one in (model, other)])
    sums = sum_scores(both, data_of(blends, "ten_crop"))
    assert sums.confusion.tolist() == confusion
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)


@pytest.mark.usefixtures("ray_local")
def test_tasks_give_the_same_whole_images(blends: Coloured, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(blends, "multi_scale")
    here = [(int(id_), block["image_16"][row]) for block in score_blocks(data) for row, id_ in enumerate(block["id"])]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    there = [(int(id_), block["image_16"][row]) for block in score_blocks(data) for row, id_ in enumerate(block["id"])]
    assert [id_ for id_, _ in here] == [id_ for id_, _ in there]
    assert all(np.array_equal(mine, theirs) for (_, mine), (_, theirs) in zip(here, there, strict=True))


def test_the_paper_s_scales_in_proportion_to_the_crop() -> None:
    assert EvalCrops(name="multi_scale").scales_for(224) == (224, 256, 384, 480, 640)
    assert EvalCrops(name="multi_scale").scales_for(32) == (32, 37, 55, 69, 91)
