from __future__ import annotations

import pytest
import torch

from resnet_core.augment import augment, normalize, random_flip, step_generator
from resnet_core.config import AugmentConfig

CPU = torch.device("cpu")


def images(rows: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 5, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalize_gives_zero_mean_and_unit_deviation_channels_first() -> None:
    batch = images(2)
    out = normalize(batch, (0.1, 0.2, 0.3), (0.5, 0.25, 0.2))
    assert out.shape == (2, 3, 5, 4)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 0.2))):
        expected = (batch[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(out[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_flip_mirrors_about_half_the_images_and_leaves_the_rest() -> None:
    batch = images(1000)
    out = random_flip(batch, step_generator(0, 0, 0, CPU))
    kept = (out == batch).flatten(1).all(1)
    mirrored = (out == batch.flip(2)).flatten(1).all(1)
    assert bool((kept | mirrored).all())
    assert 450 < int(mirrored.sum()) < 550


def test_draws_depend_on_seed_step_and_rank_and_on_nothing_else() -> None:
    def draw(seed: int, step: int, rank: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=step_generator(seed, step, rank, CPU)).tolist())

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(seed, step, rank) for seed in (0, 1) for step in (0, 1, 12) for rank in (0, 1, 2)}) == 18


@pytest.mark.parametrize("flip", [False, True])
def test_augment_flips_only_when_asked_and_does_not_touch_its_input(flip: bool) -> None:
    batch = images()
    before = batch.clone()
    config = AugmentConfig(flip=flip)
    out = augment(batch, config, step_generator(7, 0, 0, CPU))
    expected = random_flip(batch, step_generator(7, 0, 0, CPU)) if flip else batch
    assert torch.equal(out, normalize(expected, config.mean, config.std))
    assert torch.equal(batch, before)
