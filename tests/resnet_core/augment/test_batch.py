from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import resnet_core.augment.batch as module
from resnet_core.augment import augment, normalize, random_flip, step_generator
from resnet_core.augment.erasing import random_erase_
from resnet_core.augment.mixing import mix
from resnet_core.augment.photometric import jitter_color_, shift_lighting_
from resnet_core.config import AugmentConfig
from resnet_core.config.augment import EraseMode

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


def test_flips_are_the_same_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn = random_flip(images(), step_generator(0, 0, 0, CPU))
    monkeypatch.setattr(module, "_mirror_in_turn", module._mirror_at_once)
    assert torch.equal(in_turn, random_flip(images(), step_generator(0, 0, 0, CPU)))


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


def test_the_mean_image_takes_the_means_place_at_any_size() -> None:
    config = AugmentConfig(pixel_mean=True, std=(0.5, 0.25, 0.2))
    mean_image = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(1))
    out = augment(images(4), config, step_generator(0, 0, 0, CPU), mean_image)
    expected = (images(4).double() / 255 - mean_image) / torch.tensor([0.5, 0.25, 0.2])
    torch.testing.assert_close(out.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    flat = torch.tensor([0.1, 0.2, 0.3]).expand(10, 8, 3)
    torch.testing.assert_close(
        normalize(images(4), flat, config.std), normalize(images(4), (0.1, 0.2, 0.3), config.std), atol=1e-5, rtol=0
    )


def test_a_mean_image_that_is_missing_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"augment\.pixel_mean needs the mean image"):
        augment(images(1), AugmentConfig(pixel_mean=True), step_generator(0, 0, 0, CPU))


def test_everything_at_once_is_a_function_of_the_generator_and_does_not_touch_its_input() -> None:
    config = AugmentConfig(flip=True, color_jitter=0.4, lighting=0.1, erase_prob=0.5)
    batch = images()
    before = batch.clone()
    first, again, other = (augment(batch, config, step_generator(0, step, 0, CPU)) for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(batch, before)
    assert (first.dtype, first.shape) == (torch.float32, (64, 3, 5, 4))
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_nothing_draws_from_torchs_global_generator() -> None:
    state = torch.get_rng_state()
    config = AugmentConfig(flip=True, color_jitter=0.4, lighting=0.1, erase_prob=0.5, erase_mode="noise")
    augment(images(), config, step_generator(0, 0, 0, CPU))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_is_flip_jitter_lighting_normalize_erase() -> None:
    config = AugmentConfig(flip=True, color_jitter=0.3, lighting=0.1, erase_prob=1.0)
    own = step_generator(5, 0, 0, CPU)
    expected = random_flip(images(), own).float()
    jitter_color_(expected, 0.3, own)
    shift_lighting_(expected, 0.1, own)
    expected = normalize(expected, config.mean, config.std)
    random_erase_(expected, config, own)
    assert torch.equal(augment(images(), config, step_generator(5, 0, 0, CPU)), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lighting": -0.1}, r"augment\.lighting must be finite, at least 0: got -0\.1"),
        ({"color_jitter": 1.5}, r"augment\.color_jitter must be in \[0, 1\]: got 1\.5"),
        ({"mixup_alpha": float("inf")}, r"augment\.mixup_alpha"),
        ({"cutmix_alpha": -1.0}, r"augment\.cutmix_alpha"),
        ({"mix_prob": 1.1}, r"augment\.mix_prob"),
        ({"cutmix_share": -0.1}, r"augment\.cutmix_share"),
        ({"erase_prob": 2.0}, r"augment\.erase_prob"),
        ({"erase_area": (0.3, 0.2)}, r"augment\.erase_area must be 0 < low <= high <= 1: got \(0\.3, 0\.2\)"),
        ({"erase_aspect": (0.0, 2.0)}, r"augment\.erase_aspect"),
        ({"erase_mode": "mean"}, r"augment\.erase_mode must be one of zero, noise: got 'mean'"),
    ],
)
def test_bad_settings_name_their_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["zero", "noise"])
def test_nothing_waits_for_the_device(mode: EraseMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: whoever asks for one, as a wait for a GPU does, gets an exception."""
    monkeypatch.setattr(module, "_mirror_in_turn", module._mirror_at_once)  # as on a GPU
    config = AugmentConfig(
        flip=True, color_jitter=0.4, lighting=0.1, erase_prob=0.5, erase_mode=mode, mixup_alpha=0.2, cutmix_alpha=1.0
    )
    augment(images(2), config, step_generator(0, 0, 0, CPU))  # constants are made once
    with FakeTensorMode(allow_non_fake_inputs=True):
        own, labels = step_generator(0, 0, 0, CPU), torch.zeros(64, dtype=torch.int64)
        mixed, targets = mix(augment(images(), config, own), labels, config, own)
        assert mixed.shape == (64, 3, 5, 4) and targets.share_B is not None
        with pytest.raises(DataDependentOutputException):
            targets.share_B.sum().item()
