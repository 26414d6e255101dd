"""Policies: torchvision's and timm's own pixels for the same draws, and draws that are the sample's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode, v2

from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.images import policies
from pipelines.data.images.pillow import train_crop
from pipelines.data.images.policies import NAMES, argument, build_policy, operate, rand_augment, three_augment
from pipelines.data.order.rng import Purpose, generator
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import TaskConfig, load_item
from tests.pipelines.data.conftest import picture

IMAGE = picture(48, 40)
POLICIES = ("trivial_augment_wide", "rand_augment", "three_augment")
TIMMS_FILL = (124, 116, 104)


def rng(sample: int = 0) -> np.random.Generator:
    return generator(0, Purpose.CROP, 0, sample)


def crop(policy: Any, **fields: Any) -> CropConfig:
    return CropConfig(image_size=28, eval_resize=28, train_crop="pad", pad=2, policy=policy, **fields)


def test_trivial_augment_is_torchvisions_for_the_same_seed_and_leaves_the_global_generator_alone() -> None:
    reference = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    ours = build_policy(crop("trivial_augment_wide"))
    before = torch.get_rng_state()
    changed = [ours(np.asarray(IMAGE), rng(sample)) for sample in range(60)]
    assert torch.equal(torch.get_rng_state(), before)
    for sample, pixels in enumerate(changed):
        torch.manual_seed(int(rng(sample).integers(2**63)))
        assert np.array_equal(pixels, np.asarray(reference(IMAGE)))
    assert len({pixels.tobytes() for pixels in changed}) > 40


TIMMS_NAMES = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
GROWING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}


def timms(name: str, *, increasing: bool) -> str:
    return f"{name}Increasing" if increasing and name in GROWING else TIMMS_NAMES.get(name, name)


def test_rand_augment_has_timms_operations() -> None:
    reference = pytest.importorskip("timm.data.auto_augment")
    for increasing in (False, True):
        names = sorted(timms(name, increasing=increasing) for name in NAMES)
        assert names == sorted(reference.rand_augment_choices("", increasing=increasing))


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_timms_to_the_pixel(name: str, increasing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("timm.data.auto_augment")
    for magnitude in (0.0, 2.5, 6.0, 7.3, 9.99, 10.0):
        hparams = {"img_mean": TIMMS_FILL, "interpolation": Image.Resampling.BICUBIC}
        operation = reference.AugmentOp(
            timms(name, increasing=increasing), prob=1.0, magnitude=magnitude, hparams=hparams
        )
        for sign, draw in ((1.0, 0.2), (-1.0, 0.8)):
            value = argument(name, magnitude / 10, sign, increasing=increasing)
            ours = np.asarray(operate(IMAGE, name, value))
            if (name, value) == ("Posterize", 0):  # Pillow 12 refuses what timm asks of it
                assert not ours.any()
                continue
            monkeypatch.setattr(random, "random", lambda draw=draw: draw)
            expected = np.asarray(operation(IMAGE))
            monkeypatch.undo()
            assert np.array_equal(ours, expected), (magnitude, sign)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What is going to be drawn, instead of being done."""
    drawn: list[tuple[str, float]] = []

    def note(image: Image.Image, name: str, value: float) -> Image.Image:
        drawn.append((name, value))
        return image

    monkeypatch.setattr(policies, "operate", note)
    return drawn


def test_rand_augment_draws_operations_strengths_and_signs_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noted(monkeypatch)
    config = crop("rand_augment", policy_ops=3, policy_magnitude=7.0, policy_magnitude_std=0.5, policy_increasing=True)
    change = rand_augment(config)
    for sample in range(4000):
        change(IMAGE, rng(sample))
    counts = Counter(name for name, _ in drawn)
    assert 5850 < len(drawn) < 6150  # 4000 images, 3 operations, each with probability one half
    assert set(counts) == set(NAMES) and min(counts.values()) > 330 and max(counts.values()) < 470  # 400 each
    degrees = np.array([value for name, value in drawn if name == "Rotate"])
    assert np.abs(degrees).mean() == pytest.approx(21.0, abs=0.3)
    assert np.abs(degrees).std() == pytest.approx(1.5, abs=0.2)
    assert 0.4 < (degrees > 0).mean() < 0.6


def test_strength_stays_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noted(monkeypatch)
    config = crop("rand_augment", policy_magnitude=10.0, policy_magnitude_std=5.0)
    for sample in range(600):
        rand_augment(config)(IMAGE, rng(sample))
    degrees = np.abs([value for name, value in drawn if name == "Rotate"])
    assert degrees.max() == 30.0 and 0.3 < (degrees == 30.0).mean() < 0.7
    assert {value for name, value in drawn if name == "Posterize"} <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_three_augment_is_one_of_three() -> None:
    grey = np.asarray(IMAGE.convert("L").convert("RGB"))
    solarized = np.asarray(ImageOps.solarize(IMAGE, 128))
    kinds: Counter[str] = Counter()
    for sample in range(600):
        pixels = np.asarray(three_augment(IMAGE, rng(sample)))
        if np.array_equal(pixels, grey):
            kinds["grey"] += 1
        elif np.array_equal(pixels, solarized):
            kinds["solarized"] += 1
        else:
            draws = rng(sample)
            draws.integers(3)
            blurred = IMAGE.filter(ImageFilter.GaussianBlur(draws.uniform(0.1, 2.0)))
            assert np.array_equal(pixels, np.asarray(blurred))
            kinds["blurred"] += 1
    assert all(160 < kinds[kind] < 240 for kind in ("grey", "solarized", "blurred"))


Load = Callable[[WorkItem, TaskConfig], dict[str, Any]]


@pytest.fixture
def load(mnist: tuple[LocalStore, Manifest]) -> Load:
    def run(item: WorkItem, config: TaskConfig) -> dict[str, Any]:
        blocks = list(load_item(*mnist, item, config))
        rows = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        order = np.argsort(rows["id"])
        return {name: column[order] for name, column in rows.items()}

    return run


ITEM = WorkItem(epoch=2, pieces=((0, 0), (1, 5)), rows=64, image_size=28)
ALONE = WorkItem(epoch=2, pieces=((1, 5),), rows=32, image_size=28)
LATER = WorkItem(epoch=3, pieces=ALONE.pieces, rows=32, image_size=28)


def task(policy: str, *, seed: int = 0, rows_per_block: int = 100, repeats: int = 1) -> TaskConfig:
    return TaskConfig(crop=crop(policy, repeats=repeats), train=True, seed=seed, rows_per_block=rows_per_block)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_depends_on_seed_epoch_and_id_alone(policy: str, load: Load) -> None:
    together = load(ITEM, task(policy))
    alone = load(ALONE, task(policy, rows_per_block=5))
    assert alone["id"].tolist() == together["id"][32:].tolist()
    assert np.array_equal(alone["image"], together["image"][32:])
    plain = load(ALONE, task(""))["image"]
    others = [plain, load(LATER, task(policy))["image"], load(ALONE, task(policy, seed=1))["image"]]
    assert all(not np.array_equal(alone["image"], other) for other in others)
    # the policy's draws come after the crop's, so that a policy does not move the crops
    untouched = (alone["image"] == plain).all(axis=(1, 2, 3))
    assert untouched.any() or policy == "three_augment"


def test_repeats_are_the_views_of_as_many_epochs(load: Load) -> None:
    """View v of pass e is what a run without repeats shows at pass 3 e + v."""
    repeated = load(ALONE, task("rand_augment", repeats=3))
    assert repeated["image"].shape == (32, 3, 28, 28, 3)
    assert repeated["id"].tolist() == list(range(1160, 1192))
    assert set(repeated["epoch"].tolist()) == {2}
    for view in range(3):
        item = WorkItem(epoch=6 + view, pieces=ALONE.pieces, rows=32, image_size=28)
        assert np.array_equal(repeated["image"][:, view], load(item, task("rand_augment"))["image"])


def test_without_policy_and_repeats_a_sample_is_its_crop_alone(mnist: tuple[LocalStore, Manifest], load: Load) -> None:
    whole = TaskConfig(crop=CropConfig(image_size=28, eval_resize=28), train=False, seed=0, rows_per_block=100)
    stored, shown = load(ALONE, whole), load(ALONE, task(""))
    for place, sample in enumerate(shown["id"].tolist()):
        image = Image.fromarray(stored["image"][place])
        expected = train_crop(image, crop(""), generator(0, Purpose.CROP, 2, sample))
        assert np.array_equal(shown["image"][place], expected)
