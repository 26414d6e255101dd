"""Images, masks and boxes of a canvas against a slow reference: resize all of the image, then cut or pad.

The reference of boxes is torchvision's (resize, crop, clamp, sanitize). Masks are compared pixel by pixel in fractions.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pipelines.config.crop import CropConfig
from pipelines.data.images.crop_boxes import Window, eval_window, random_box, train_window
from pipelines.data.images.joint_geometry import (
    IGNORED,
    boxes_in_image,
    boxes_on_canvas,
    canvas_of,
    flipped,
    flipped_boxes,
    large_scale_jitter,
    mask_canvas_of,
    whole_image,
)

SIZE = 40
COLOUR = (9, 100, 200)
LEVELS = 2  # of 255: the fast resize and Pillow's round at other places
FLOAT32 = 1e-4  # pixels: torchvision computes boxes in it
sides = st.integers(1, 90)
seeds = st.integers(0, 2**32 - 1)


def picture(width: int, height: int, seed: int) -> npt.NDArray[np.uint8]:
    """Smooth, so that a filter that reads a neighbouring pixel more or less is seen, but rounding is not."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jitter(width: int, height: int, seed: int) -> tuple[Window, tuple[int, int], tuple[int, int]]:
    """The window, and by the same draws the size of the resized image and its offset."""
    window = large_scale_jitter(width, height, SIZE, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    ratio = Fraction(rng.uniform(0.1, 2.0)) * SIZE / max(width, height)
    resized = max(1, int(width * ratio)), max(1, int(height * ratio))
    return window, resized, (
        int(rng.integers(max(0, resized[0] - SIZE) + 1)),
        int(rng.integers(max(0, resized[1] - SIZE) + 1)),
    )  # fmt: skip


def random_boxes(width: int, height: int, seed: int, count: int = 6) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (count, 2, 2)) * (width, height)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


@given(width=sides, height=sides, seed=seeds)
@settings(max_examples=150, deadline=None)
def test_large_scale_jitter_of_an_image_is_a_resize_and_a_cut(width: int, height: int, seed: int) -> None:
    window, resized, (left, top) = jitter(width, height, seed)
    pixels = picture(width, height, seed)
    whole = np.asarray(Image.fromarray(pixels).resize(resized, Image.Resampling.BILINEAR))
    part = whole[top : top + SIZE, left : left + SIZE].astype(int)
    canvas = canvas_of(pixels, window, SIZE, fill=COLOUR)
    height_shown, width_shown = part.shape[:2]
    assert np.abs(canvas[:height_shown, :width_shown] - part).max() <= LEVELS
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[:height_shown, :width_shown] = False
    assert (canvas[outside] == COLOUR).all()


@given(width=sides, height=sides, seed=seeds)
@settings(max_examples=100, deadline=None)
def test_a_masks_pixel_is_the_one_under_its_centre(width: int, height: int, seed: int) -> None:
    window, resized, (left, top) = jitter(width, height, seed)
    mask = np.random.default_rng(seed).integers(0, 200, (height, width), dtype=np.uint8)
    canvas = mask_canvas_of(mask, window, SIZE)
    half = Fraction(1, 2)
    columns = [int((left + place + half) * width / resized[0]) for place in range(min(SIZE, resized[0] - left))]
    rows = [int((top + place + half) * height / resized[1]) for place in range(min(SIZE, resized[1] - top))]
    expected = np.full((SIZE, SIZE), IGNORED, dtype=np.uint8)
    for row, from_row in enumerate(rows):
        for column, from_column in enumerate(columns):
            expected[row, column] = mask[from_row, from_column]
    assert (canvas == expected).all()


@given(width=sides, height=sides, seed=seeds)
@settings(max_examples=100, deadline=None)
def test_boxes_are_torchvisions(width: int, height: int, seed: int) -> None:
    window, resized, (left, top) = jitter(width, height, seed)
    boxes = random_boxes(width, height, seed)
    theirs = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload]
    theirs = F.resize(theirs, [resized[1], resized[0]])
    shown = min(SIZE, resized[1] - top), min(SIZE, resized[0] - left)
    theirs = F.clamp_bounding_boxes(F.crop(theirs, top, left, *shown))
    expected, kept = F.sanitize_bounding_boxes(theirs, min_size=1.0, min_area=1.0)
    mine, mine_kept = boxes_on_canvas(boxes, window, SIZE)
    narrow = (theirs[:, 2:] - theirs[:, :2]).numpy()
    if (np.abs(narrow - 1) < FLOAT32).any():
        return  # kept or not by rounding
    assert mine_kept.tolist() == kept.tolist()
    np.testing.assert_allclose(mine, expected.numpy(), rtol=0, atol=FLOAT32)


@given(width=sides, height=sides, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_random_resized_crop_carries_mask_and_boxes(width: int, height: int, seed: int) -> None:
    crop = CropConfig(image_size=SIZE, scale=(0.1, 1.0))
    left, top, right, bottom = random_box(width, height, crop, np.random.default_rng(seed))
    window = train_window(width, height, crop, np.random.default_rng(seed))
    pixels = picture(width, height, seed)
    region = Image.fromarray(pixels).crop((left, top, right, bottom))
    expected = np.asarray(region.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(canvas_of(pixels, window, SIZE) - expected).max() <= LEVELS
    mask = np.random.default_rng(seed).integers(0, 200, (height, width), dtype=np.uint8)
    places = [[int((place + Fraction(1, 2)) * length / SIZE) for place in range(SIZE)]
              for length in (right - left, bottom - top)]  # fmt: skip
    cut = mask[top:bottom, left:right]
    assert (mask_canvas_of(mask, window, SIZE) == cut[np.ix_(places[1], places[0])]).all()
    boxes = random_boxes(width, height, seed)
    scale = np.array([SIZE / (right - left), SIZE / (bottom - top)] * 2)
    moved = np.clip((boxes - (left, top, left, top)) * scale, 0, SIZE)
    wide = (moved[:, 2:] - moved[:, :2] >= 1).all(axis=1)
    mine, kept = boxes_on_canvas(boxes, window, SIZE)
    assert kept.tolist() == wide.tolist()
    np.testing.assert_allclose(mine, moved[wide], atol=1e-9)


@given(width=st.integers(20, 90), height=st.integers(20, 90), seed=seeds, mirror=st.booleans())
@settings(max_examples=60, deadline=None)
def test_image_mask_and_box_stay_together(width: int, height: int, seed: int, mirror: bool) -> None:
    """A rectangle that is painted into the image and the mask is where its box is, on a flipped canvas too."""
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(0, width - 10)), int(rng.integers(0, height - 10))
    x2, y2 = int(rng.integers(x1 + 10, width + 1)), int(rng.integers(y1 + 10, height + 1))
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    window = large_scale_jitter(width, height, SIZE, rng, scales=(0.8, 2.0))
    image = canvas_of(np.repeat(mask[:, :, None] * 255, 3, axis=2), window, SIZE)
    shown = mask_canvas_of(mask, window, SIZE)
    boxes, _ = boxes_on_canvas(np.array([[x1, y1, x2, y2]], dtype=float), window, SIZE)
    if mirror:
        image, shown, boxes = flipped(image), flipped(shown), flipped_boxes(boxes, SIZE)
    object_pixels = np.argwhere(shown == 1)
    if not len(boxes):
        assert len(object_pixels) == 0 or (np.ptp(object_pixels, axis=0) <= 1).any()
        return
    (top, left), (bottom, right) = object_pixels.min(axis=0), object_pixels.max(axis=0) + 1
    np.testing.assert_allclose([left, top, right, bottom], boxes[0], atol=0.5 + 1e-6)
    bright = image[:, :, 0] > 127
    assert (bright == (shown == 1)).mean() > 0.9


def test_the_whole_image_fits_and_its_boxes_come_back() -> None:
    for width, height in ((300, 200), (17, 90), (40, 40), (1, 7), (333, 1000)):
        window = whole_image(width, height, SIZE)
        boxes, kept = boxes_on_canvas(np.array([[0.0, 0, width, height]]), window, SIZE)
        assert kept.all() and boxes.max() == SIZE
        np.testing.assert_allclose(boxes_in_image(boxes, window, SIZE), [[0, 0, width, height]], atol=1e-9)
    far = boxes_in_image(np.array([[-5.0, 0, SIZE, SIZE]]), whole_image(300, 200, SIZE), SIZE)
    assert far.tolist() == [[0, 0, 300, 200]]


def test_pillows_nearest_is_the_same_where_the_mask_is_halved_or_doubled() -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for size in (4, 8, 16):
        pillow = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
        assert (mask_canvas_of(mask, whole_image(8, 8, size), size) == pillow).all()


def test_a_window_outside_the_image_shows_nothing_of_it() -> None:
    crop = CropConfig(image_size=SIZE, train_crop="center", eval_resize=SIZE)
    window = eval_window(80, 40, crop)
    boxes, kept = boxes_on_canvas(np.array([[0.0, 0, 10, 40], [0, 0, 21, 40], [30, 10, 50, 30]]), window, SIZE)
    assert kept.tolist() == [False, True, True]
    assert boxes.tolist() == [[0, 0, 1, 40], [10, 10, 30, 30]]
    away = window.copy()
    away[0] = (500, 40, 0, 80)
    assert (canvas_of(picture(80, 40, 0), away, SIZE, fill=COLOUR) == COLOUR).all()
    assert not boxes_on_canvas(np.array([[0.0, 0, 80, 40]]), away, SIZE)[1].any()


@pytest.mark.parametrize("size", [1, SIZE])
def test_no_box_stays_no_box(size: int) -> None:
    boxes, kept = boxes_on_canvas(np.zeros((0, 4)), whole_image(9, 7, size), size)
    assert (boxes.shape, kept.shape, flipped_boxes(boxes, size).shape) == ((0, 4), (0,), (0, 4))


def test_scales_and_places_cover_their_ranges() -> None:
    """Scales are uniform in [0.1, 2]; a larger image's offset is uniform over all that fit, each side by itself."""
    rng = np.random.default_rng(0)
    windows = np.stack([large_scale_jitter(80, 80, SIZE, rng) for _ in range(4000)])
    scales = SIZE / (windows[:, 0, 1] / 80) / SIZE
    assert (scales.min() < 0.13, scales.max() > 1.97, abs(np.median(scales) - 1.05) < 0.05) == (True, True, True)
    large = windows[scales > 1.2]
    offsets = large[:, :, 0] / (80 - large[:, :, 1])
    assert (offsets >= 0).all() and (offsets <= 1 + 1e-9).all()
    assert np.abs(offsets.mean(axis=0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(offsets.T).min()) < 0.07
    assert not windows[scales < 1][:, :, 0].any()
