"""Mixup and cutmix against their formulas, and against torchvision's for the same draws."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import v2

from resnet_core.augment import step_generator
from resnet_core.augment.mixing import cutmix_outside, draw_mix, mix, symmetric_beta
from resnet_core.config import AugmentConfig

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def generator(step: int = 0) -> torch.Generator:
    return step_generator(0, step, 0, CPU)


def images(height: int = 12, width: int = 10) -> torch.Tensor:
    batch = torch.randn(6, 3, height, width, generator=torch.Generator().manual_seed(1))
    return batch.contiguous(memory_format=torch.channels_last)


def torchvisions(kind: str, batch: torch.Tensor, **draws: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and soft labels of torchvision's transform with these values for its draws."""
    transform = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](num_classes=6)
    transform.make_params = lambda flat: draws
    return transform(batch, LABELS)


def mixed(
    batch: torch.Tensor, config: AugmentConfig, step: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels, other labels, shares."""
    out, targets = mix(batch, LABELS, config, generator(step))
    assert targets.other_B is not None and targets.share_B is not None
    return out, targets.labels_B, targets.other_B, targets.share_B


def soft(labels: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot
    return share[:, None] * one_hot(labels, 6) + (1 - share[:, None]) * one_hot(other, 6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 4.0])
def test_symmetric_beta_has_the_distribution(alpha: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    own = generator()
    draws = torch.stack([symmetric_beta(alpha, own, CPU) for _ in range(4000)])
    assert bool(((draws >= 0) & (draws <= 1)).all())
    # the statistic of equal distributions is beyond 2/sqrt(n) once in 1,500 seeds
    assert scipy_stats.kstest(draws.numpy(), scipy_stats.beta(alpha, alpha).cdf).statistic < 2 / math.sqrt(4000)


@pytest.mark.parametrize("step", range(5))
def test_mixup_is_the_convex_combination_with_the_rolled_batch(step: int) -> None:
    batch, config = images(), AugmentConfig(mixup_alpha=0.4)
    out, labels, other, share = mixed(batch, config, step)
    lam = share.tolist()[0]
    assert share.tolist() == [lam] * 6 and 0 <= lam <= 1
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert other.tolist() == [5, 0, 1, 2, 3, 4]
    torch.testing.assert_close(out, lam * batch + (1 - lam) * batch[[5, 0, 1, 2, 3, 4]])
    reference, reference_labels = torchvisions("mixup", batch, lam=lam)
    torch.testing.assert_close(out, reference)
    torch.testing.assert_close(soft(labels, other, share), reference_labels)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("step", range(20))
def test_cutmix_pastes_a_box_and_its_share_is_what_is_left(step: int) -> None:
    batch, config = images(), AugmentConfig(cutmix_alpha=1.0)
    out, labels, other, kept = mixed(batch, config, step)
    pasted = (out == batch.roll(1, 0)).all(1) & ~(out == batch).all(1)  # B x H x W
    assert bool((pasted == pasted[0]).all())
    rows, columns = pasted[0].any(1).nonzero().flatten().tolist(), pasted[0].any(0).nonzero().flatten().tolist()
    x1, x2 = (columns[0], columns[-1] + 1) if columns else (0, 0)
    y1, y2 = (rows[0], rows[-1] + 1) if rows else (0, 0)
    share = 1 - (x2 - x1) * (y2 - y1) / 120
    assert kept.tolist() == pytest.approx([share] * 6)
    reference, reference_labels = torchvisions("cutmix", batch, box=(x1, y1, x2, y2), lam_adjusted=share)
    assert torch.equal(out, reference)
    torch.testing.assert_close(soft(labels, other, kept), reference_labels)


def test_cutmix_boxes_are_torchvisions_for_the_same_centre_and_lambda() -> None:
    height, width = 13, 20
    seen = set()
    for step in range(200):
        y, x = (float(place) for place in torch.rand(2, generator=generator(step)))
        lam = step / 200
        outside = cutmix_outside(torch.tensor(lam, dtype=torch.float64), height, width, generator(step))
        ratio, centre_y, centre_x = 0.5 * math.sqrt(1 - lam), int(y * height), int(x * width)
        half_h, half_w = int(ratio * height), int(ratio * width)
        y1, y2 = max(0, centre_y - half_h), min(height, centre_y + half_h)
        x1, x2 = max(0, centre_x - half_w), min(width, centre_x + half_w)
        expected = torch.ones(height, width)
        expected[y1:y2, x1:x2] = 0
        assert torch.equal(outside, expected)
        clipped = (y2 - y1) < 2 * half_h or (x2 - x1) < 2 * half_w
        seen.add(clipped)
        if clipped:  # less is pasted than asked for, so that more is kept
            assert float(outside.mean()) > lam - 1e-6
    assert seen == {True, False}


def test_each_batch_has_mixup_or_cutmix_by_their_share() -> None:
    config = AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_prob=0.8, cutmix_share=0.25)
    own, kinds = generator(), {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(2000):
        share, kept = draw_mix(config, 6, 6, own, CPU)
        assert float(kept.mean()) == pytest.approx(float(share), abs=1e-6)
        whole = set(kept.unique().tolist()) <= {0.0, 1.0}
        kinds["none" if float(share) == 1 else "cutmix" if whole else "mixup"] += 1
    # 400, 1200, 400; a cutmix whose box is empty (lambda above 8/9 on 6 x 6) counts as none: 45 of 400
    assert 1120 < kinds["mixup"] < 1280
    assert 290 < kinds["cutmix"] < 420
    assert 360 < kinds["none"] < 530


def test_without_mixing_nothing_is_drawn_and_nothing_changes() -> None:
    batch, own = images(), generator()
    for config in (AugmentConfig(), AugmentConfig(mixup_alpha=0.2, mix_prob=0.0)):
        out, targets = mix(batch, LABELS, config, own)
        assert out is batch
        assert (targets.labels_B is LABELS, targets.other_B, targets.share_B) == (True, None, None)
    assert torch.equal(own.get_state(), generator().get_state())


def test_mixing_is_a_function_of_the_generators_state() -> None:
    batch, config = images(), AugmentConfig(mixup_alpha=0.2, cutmix_alpha=1.0)
    first, again, other = (mixed(batch, config, step) for step in (3, 3, 4))
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_bfloat16_images_stay_bfloat16() -> None:
    out, _, _, share = mixed(images().bfloat16(), AugmentConfig(mixup_alpha=1.0))
    assert (out.dtype, share.dtype) == (torch.bfloat16, torch.float32)
