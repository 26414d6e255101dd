"""COCO's metrics against pycocotools on the JSON of a data set, VOC's against its rules written as loops."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_core.detection import DetectionSums, voc_average_precision
from tests.resnet_core.detection.boxes import CLASSES, Image, random_images

NAMES = ("average_precision", "average_precision_50", "average_precision_75",
         "average_precision_small", "average_precision_medium", "average_precision_large")  # fmt: skip
seeds = st.integers(0, 2**32 - 1)


def sums_of(ids: list[int], predictions: list[Image], targets: list[Image], cuts: int = 0) -> DetectionSums:
    sums = DetectionSums(CLASSES)
    for rows in torch.arange(len(ids)).tensor_split(cuts + 1):
        part = rows.tolist()
        sums.update([ids[row] for row in part], [predictions[row] for row in part], [targets[row] for row in part])
    return sums


def coco_files(folder: Path, ids: list[int], predictions: list[Image], targets: list[Image]) -> tuple[Path, Path]:
    """Write annotations and results as COCO's files have them, results in the order of images."""
    annotations, results = [], []
    for number, target in zip(ids, targets, strict=True):
        for index, (x1, y1, x2, y2) in enumerate(target["boxes"].double().tolist()):
            area = float(target["area"][index]) if "area" in target else (x2 - x1) * (y2 - y1)
            crowd = int(target["iscrowd"][index]) if "iscrowd" in target else 0
            annotations.append({"id": len(annotations) + 1, "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1],
                                "category_id": int(target["labels"][index]), "area": area,
                                "iscrowd": crowd})  # fmt: skip
    for number, found in zip(ids, predictions, strict=True):
        for (x1, y1, x2, y2), label, score in zip(
            found["boxes"].double().tolist(), found["labels"].tolist(), found["scores"].double().tolist(), strict=True
        ):
            results.append({"image_id": number, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "score": score})  # fmt: skip
    names = [{"id": label, "name": str(label)} for label in range(1, CLASSES)]
    whole = {"images": [{"id": number} for number in ids], "categories": names, "annotations": annotations}
    files = folder / "instances.json", folder / "results.json"
    for path, content in zip(files, (whole, results), strict=True):
        path.write_text(json.dumps(content))
    return files


@given(seed=seeds, count=st.integers(1, 8), cuts=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_coco_metrics_are_those_of_its_files(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, cuts: int
) -> None:
    images = random_images(seed, count)
    files = coco_files(tmp_path_factory.mktemp("coco"), *images)
    truth = COCO(str(files[0]))
    results = json.loads(files[1].read_text())
    sums = sums_of(*images, cuts=cuts)
    if not results or not truth.dataset["annotations"]:
        assert sums.metrics()["average_precision"] == 0
        return
    reference = COCOeval(truth, truth.loadRes(str(files[1])), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    metrics = sums.metrics()
    for name, expected in zip(NAMES, reference.stats[:6].tolist(), strict=True):
        if expected >= 0 or name in NAMES[:3]:
            assert metrics[name] == pytest.approx(max(expected, 0), abs=1e-12), name
        else:
            assert name not in metrics
    assert metrics["average_recall"] == pytest.approx(max(float(reference.stats[8]), 0), abs=1e-12)
    by_class = sums.details()["average_precision"]
    for label in range(1, CLASSES):
        reference.params.catIds = [label]
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
        expected = float(reference.stats[0])
        assert float(by_class[label - 1]) == pytest.approx(expected if expected >= 0 else math.nan, nan_ok=True)


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def voc_points(
    images: tuple[list[int], list[Image], list[Image]], label: int
) -> list[tuple[Fraction, Fraction]] | None:
    """VOCevaldet.m: take detections by score; the best object of the image decides. Recall and precision after each."""
    objects: dict[int, list[dict[str, Any]]] = {}
    ranked = []
    for number, found, target in zip(*images, strict=True):
        objects[number] = [
            {"box": box, "difficult": bool(target["iscrowd"][index]) if "iscrowd" in target else False, "det": False}
            for index, box in enumerate(target["boxes"].double().tolist())
            if target["labels"][index] == label
        ]
        for index, box in enumerate(found["boxes"].double().tolist()):
            if found["labels"][index] == label:
                ranked.append((-float(found["scores"][index]), number, index, box))
    positives = sum(not each["difficult"] for every in objects.values() for each in every)
    if not positives:
        return None
    points, right, wrong = [], 0, 0
    for _, number, _, box in sorted(ranked):
        best, most = None, -math.inf
        for each in objects[number]:
            if (value := overlap(box, each["box"])) > most:
                best, most = each, value
        if best is not None and most >= 0.5:
            if best["difficult"]:
                continue
            right, wrong = (right, wrong + 1) if best["det"] else (right + 1, wrong)
            best["det"] = True
        else:
            wrong += 1
        points.append((Fraction(right, positives), Fraction(right, right + wrong)))
    return points


def voc_by_loops(images: tuple[list[int], list[Image], list[Image]], label: int, eleven: bool) -> float:
    points = voc_points(images, label)
    if points is None:
        return math.nan
    if eleven:
        tenths = [max((p for r, p in points if r >= Fraction(tenth, 10)), default=Fraction(0)) for tenth in range(11)]
        return float(sum(tenths) / 11)
    area, before = Fraction(0), Fraction(0)
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return float(area)


@given(seed=seeds, count=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_voc_average_precision_follows_its_rules(seed: int, count: int) -> None:
    images = random_images(seed, count)
    boxes = sums_of(*images).boxes
    for eleven in (True, False):
        found = voc_average_precision(boxes, CLASSES, eleven_points=eleven).tolist()
        expected = [voc_by_loops(images, label, eleven) for label in range(1, CLASSES)]
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_by_hand() -> None:
    """Two objects, three detections by score: right, wrong, right. Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    object_boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    target = {"boxes": object_boxes, "labels": torch.tensor([1, 1])}
    found = {
        "boxes": torch.cat([object_boxes[:1], torch.tensor([[80.0, 80, 90, 90]]), object_boxes[1:]]),
        "labels": torch.tensor([1, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    sums = DetectionSums(2)
    sums.update([4], [found], [target])
    assert float(voc_average_precision(sums.boxes, 2)) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert float(voc_average_precision(sums.boxes, 2, eleven_points=True)) == pytest.approx((6 + 5 * 2 / 3) / 11)
    metrics = sums.metrics()
    for name in ("average_precision", "average_precision_50", "average_precision_75", "average_precision_small"):
        assert metrics[name] == pytest.approx((51 + 50 * 2 / 3) / 101), name
    assert {"average_precision_medium", "average_precision_large"}.isdisjoint(metrics)
    assert (sums.details()["count"].tolist(), metrics["average_recall"]) == ([2], 1.0)


def test_pycocotools_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sums_of(*random_images(0, 3)).metrics()
    assert capsys.readouterr().out == ""


def test_no_image_or_one_image_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was scored: the split has no images"):
        DetectionSums(CLASSES).metrics()
    ids, predictions, targets = random_images(1, 2)
    with pytest.raises(ValueError, match=f"image {ids[1]} was scored twice"):
        sums_of([*ids, ids[1]], [*predictions, predictions[1]], [*targets, targets[1]]).metrics()
