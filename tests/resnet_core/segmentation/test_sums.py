"""IoU and pixel accuracy against scikit-learn and a slow count, on random masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from resnet_core.segmentation import SegmentationSums

CPU = torch.device("cpu")


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 6), images=st.integers(1, 7), cuts=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_iou_is_scikit_learns(seed: int, classes: int, images: int, cuts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (images, 5, 4), generator=generator)
    masks = torch.randint(-1, classes, (images, 5, 4), generator=generator)
    masks[masks < 0] = 255
    masks[0, 0, 0] = 0
    sums = SegmentationSums(classes, CPU)
    for rows in torch.arange(images).tensor_split(cuts + 1):  # some are empty
        sums.add(predicted[rows], masks[rows].to(torch.uint8))
    scored = (masks != 255).numpy()
    truth, answer = masks.numpy()[scored], predicted.numpy()[scored]
    present = sorted({*truth.tolist(), *answer.tolist()})
    expected = jaccard_score(truth, answer, labels=present, average=None)
    np.testing.assert_allclose(sums.iou.numpy()[present], expected, rtol=0, atol=1e-12)
    assert sums.iou.isnan().sum() == classes - len(present)
    metrics = sums.metrics()
    assert metrics["mean_iou"] == pytest.approx(expected.mean(), abs=1e-12)
    assert metrics["pixel_accuracy"] == pytest.approx((truth == answer).mean(), abs=1e-12)
    assert int(sums.confusion.sum()) == scored.sum()


def test_logits_become_as_large_as_the_mask() -> None:
    logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 3, (1, 9, 7), generator=torch.Generator().manual_seed(1))
    sums, larger = SegmentationSums(3, CPU), SegmentationSums(3, CPU)
    sums.update(logits, masks)
    larger.add(F.interpolate(logits, size=(9, 7), mode="bilinear", align_corners=False).argmax(1), masks)
    assert torch.equal(sums.confusion, larger.confusion)
    assert sums.details()["confusion"].dtype == torch.int64


@pytest.mark.parametrize("label", [-1, 3, 254])
def test_a_label_that_is_no_class_is_an_error(label: int) -> None:
    with pytest.raises(IndexError):
        SegmentationSums(3, CPU).add(torch.zeros(1, 1, 2), torch.tensor([[[0, label]]]))


def test_scoring_no_pixel_is_an_error() -> None:
    sums = SegmentationSums(3, CPU)
    sums.add(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 255))
    with pytest.raises(ValueError, match="nothing was scored"):
        sums.metrics()
