"""Random erasing against torchvision's, and against what its fields promise."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from resnet_core.augment import step_generator
from resnet_core.augment.erasing import erased, random_erase_
from resnet_core.config import AugmentConfig

CPU = torch.device("cpu")


def generator(step: int = 0) -> torch.Generator:
    return step_generator(0, step, 0, CPU)


def boxes(mask: torch.Tensor) -> torch.Tensor:
    """top, left, height, width of each mask's box, N x 4; every mask must be one."""
    rows, columns = mask.any(2), mask.any(1)
    h, w = rows.sum(1), columns.sum(1)
    assert torch.equal(mask.sum((1, 2)), h * w)
    return torch.stack([rows.int().argmax(1), columns.int().argmax(1), h, w], dim=1).double()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    config = AugmentConfig(erase_prob=1.0)
    ours = boxes(erased((4000, 3, height, width), config, generator(), CPU))
    reference = v2.RandomErasing(p=1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    draws = [reference.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[draw["i"], draw["j"], draw["h"], draw["w"]] for draw in draws]).double()
    side = torch.tensor([height, width, height, width])
    assert float(((ours.mean(0) - theirs.mean(0)).abs() / side).max()) < 0.02
    assert float(((ours.std(0) - theirs.std(0)).abs() / side).max()) < 0.02
    for share in (0.1, 0.5, 0.9):
        for column in range(4):
            assert abs(ours[:, column].quantile(share) - theirs[:, column].quantile(share)) <= 1.5


def test_area_and_aspect_stay_within_their_bounds() -> None:
    config = AugmentConfig(erase_prob=1.0, erase_area=(0.1, 0.2), erase_aspect=(0.5, 2.0))
    found = boxes(erased((500, 3, 100, 100), config, generator(), CPU))
    area, aspect = found[:, 2] * found[:, 3] / 1e4, found[:, 2] / found[:, 3]
    assert 0.095 < float(area.min()) < 0.11 and 0.19 < float(area.max()) < 0.205
    assert 0.48 < float(aspect.min()) < 0.55 and 1.8 < float(aspect.max()) < 2.1
    assert float((found[:, 0] + found[:, 2]).max()) <= 100 and float((found[:, 1] + found[:, 3]).max()) <= 100


def test_zero_erases_by_probability_and_touches_nothing_else() -> None:
    batch = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = batch.clone()
    config = AugmentConfig(erase_prob=0.25)
    random_erase_(batch, config, generator())
    mask = erased(batch.shape, config, generator(), CPU)
    assert torch.equal(batch, torch.where(mask[:, None], 0.0, before))
    assert 70 < int(mask.any(2).any(1).sum()) < 130


def test_noise_is_unit_normal_and_keeps_the_layout() -> None:
    batch = torch.full((200, 3, 16, 16), 9.0).contiguous(memory_format=torch.channels_last)
    random_erase_(batch, AugmentConfig(erase_prob=1.0, erase_mode="noise"), generator())
    noise = batch[batch != 9.0]
    assert 20_000 < len(noise) < 40_000
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_box_that_fits_nowhere_leaves_the_image_whole() -> None:
    config = AugmentConfig(erase_prob=1.0, erase_area=(1.0, 1.0), erase_aspect=(1.0, 1.0))
    assert not erased((8, 3, 10, 10), config, generator(), CPU).any()


def test_erasing_is_a_function_of_the_generators_state() -> None:
    for mode in ("zero", "noise"):
        results = []
        for step in (3, 3, 4):
            batch = torch.ones(8, 3, 16, 16)
            random_erase_(batch, AugmentConfig(erase_prob=0.9, erase_mode=mode), generator(step))
            results.append(batch)
        first, again, other = results
        assert torch.equal(first, again) and not torch.equal(first, other)
