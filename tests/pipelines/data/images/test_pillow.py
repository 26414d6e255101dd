from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.config.crop import CropConfig
from pipelines.data.images.pillow import (
    DecodeError,
    decode_rgb,
    eval_crop,
    jittered_box,
    random_box,
    resize_shorter,
    train_crop,
)
from pipelines.data.order.rng import Purpose, generator
from tests.pipelines.data.conftest import encoded, picture

PHOTO = picture(60, 40)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(PHOTO, "PNG"), PHOTO, id="png"),
        pytest.param(encoded(PHOTO.convert("L"), "PNG"), PHOTO.convert("L").convert("RGB"), id="grey"),
        pytest.param(encoded(PHOTO.convert("LA"), "PNG"), PHOTO.convert("L").convert("RGB"), id="grey with alpha"),
        pytest.param(encoded(PHOTO.convert("P"), "PNG"), PHOTO.convert("P").convert("RGB"), id="palette"),
        pytest.param(encoded(PHOTO.convert("RGBA"), "PNG"), PHOTO, id="rgba"),
        pytest.param(encoded(PHOTO.convert("1"), "PNG"), PHOTO.convert("1").convert("RGB"), id="bilevel"),
        pytest.param(encoded(PHOTO, "WEBP", lossless=True), PHOTO, id="webp"),
        pytest.param(encoded(PHOTO, "TIFF"), PHOTO, id="tiff"),
        pytest.param(encoded(PHOTO, "BMP"), PHOTO, id="bmp"),
        pytest.param(encoded(picture(1, 1), "PNG"), picture(1, 1), id="1x1"),
    ],
)
def test_odd_images_become_rgb(data: bytes, expected: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_rgb(data)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes_look_like_the_original(mode: str, progressive: bool) -> None:
    decoded = decode_rgb(encoded(PHOTO.convert(mode), "JPEG", quality=95, progressive=progressive))
    assert decoded.shape == (40, 60, 3)
    difference = decoded.astype(int) - np.asarray(PHOTO.convert(mode).convert("RGB")).astype(int)
    assert np.abs(difference).mean() < 3


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    decoded = decode_rgb(encoded(Image.fromarray(deep), "PNG"))
    assert np.array_equal(decoded, np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_palette_with_transparency_decodes_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_rgb(encoded(PHOTO.convert("P"), "PNG", transparency=bytes(range(256))))
    assert np.array_equal(decoded, np.asarray(PHOTO.convert("P").convert("RGB")))


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_rgb(encoded(PHOTO, "JPEG", exif=exif)).shape == (40, 60, 3)


def forged_size(width: int, height: int) -> bytes:
    data = encoded(PHOTO, "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"not an image \(0 bytes\)"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "not an image"),
        (encoded(PHOTO)[:-40], "OSError"),
        (encoded(PHOTO, "PNG")[:60], "."),
        (forged_size(12000, 10000), "12000x10000 is more than 100,000,000 pixels"),
        (forged_size(65000, 65000), "65000x65000 is more than"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_bad_bytes_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_rgb(data)


def test_evaluation_equals_torchvision_by_pixel() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    crop = CropConfig(image_size=30, eval_resize=36)
    reference = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(30)])
    for size in ((60, 40), (37, 91), (36, 36), (20, 31), (33, 32)):
        image = picture(*size, seed=size[0])
        assert np.array_equal(eval_crop(image, crop), np.asarray(reference(image)))


def test_random_resized_pixels_equal_torchvisions_for_the_same_box() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    crop = CropConfig(image_size=24)
    image = picture(90, 70)
    for sample in range(20):
        left, top, right, bottom = random_box(90, 70, crop, generator(0, Purpose.CROP, 0, sample))
        expected = functional.resized_crop(image, top, left, bottom - top, right - left, [24, 24])
        assert np.array_equal(train_crop(image, crop, generator(0, Purpose.CROP, 0, sample)), np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((90, 70), (3 / 4, 4 / 3)), ((300, 40), (3 / 4, 4 / 3)), ((10, 200), (3 / 4, 4 / 3)), ((80, 80), (0.4, 0.8))],
)
def test_random_boxes_are_distributed_as_torchvisions(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    width, height = size
    rng = generator(0, Purpose.CROP)
    ours = np.array([random_box(width, height, CropConfig(ratio=ratio), rng) for _ in range(4000)], dtype=float)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    draws = [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], list(ratio)) for _ in range(4000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in draws], dtype=float)
    assert ours.min() >= 0
    assert ours[:, 2].max() <= width
    assert ours[:, 3].max() <= height
    scale = np.array([width, height, width, height])
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() / scale.max() < 0.02
    assert np.all(np.abs(ours.std(0) - theirs.std(0)) / scale < 0.02)


def test_scale_jitter_is_a_crop_of_the_resized_image() -> None:
    crop = CropConfig(image_size=24, train_crop="scale_jitter", jitter_min=26, jitter_max=48)
    image = picture(90, 70)
    for sample in range(50):
        left, top, right, _ = jittered_box(90, 70, crop, generator(0, Purpose.CROP, 0, sample))
        resized = resize_shorter(image, int(generator(0, Purpose.CROP, 0, sample).integers(26, 49)))
        column, row = left * resized.width / 90, top * resized.height / 70
        assert (right - left) * resized.width / 90 == pytest.approx(24)
        assert (column, row) == pytest.approx((round(column), round(row)))
        whole = np.asarray(resized)[round(row) : round(row) + 24, round(column) : round(column) + 24]
        ours = train_crop(image, crop, generator(0, Purpose.CROP, 0, sample))
        assert ours.shape == (24, 24, 3)
        # the box is a C float in Pillow: a pixel may round the other way
        assert np.abs(ours.astype(int) - whole.astype(int)).max() <= 1


def test_scale_jitter_draws_every_size_and_place_alike() -> None:
    crop = CropConfig(image_size=224, train_crop="scale_jitter")
    rng = generator(0, Purpose.CROP)
    boxes = np.array([jittered_box(500, 375, crop, rng) for _ in range(20_000)])
    shorter = np.rint(224 * 375 / (boxes[:, 3] - boxes[:, 1])).astype(int)
    counts = np.bincount(shorter, minlength=481)[256:]
    assert (shorter.min(), shorter.max(), len(counts)) == (256, 480, 225)
    assert counts.min() > 45 and counts.max() < 140  # 89 each
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 500 + 1e-9 and boxes[:, 3].max() <= 375 + 1e-9
    places = boxes[:, 0] / (500 - (boxes[:, 2] - boxes[:, 0])), boxes[:, 1] / (375 - (boxes[:, 3] - boxes[:, 1]))
    for place in places:
        assert np.abs(np.histogram(place, 10, (0, 1))[0] / 20_000 - 0.1).max() < 0.02


def test_scale_jitter_never_resizes_below_the_crop() -> None:
    crop = CropConfig(image_size=300, train_crop="scale_jitter", jitter_min=256, jitter_max=280)
    assert jittered_box(400, 400, crop, generator(0, Purpose.CROP)) == (0, 0, 400, 400)


def test_pad_crop_takes_every_window_of_the_padded_image() -> None:
    image = Image.fromarray(np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3))
    crop = CropConfig(image_size=3, train_crop="pad", pad=1)
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    windows = {padded[top : top + 3, left : left + 3].tobytes() for top in range(3) for left in range(3)}
    seen = {train_crop(image, crop, generator(0, Purpose.CROP, 0, sample)).tobytes() for sample in range(200)}
    assert seen == windows


def test_small_images_are_centred_on_zeros() -> None:
    image = Image.fromarray(np.full((2, 2, 3), 9, dtype=np.uint8))
    for crop in (
        CropConfig(image_size=6, eval_resize=2, train_crop="center"),
        CropConfig(image_size=6, train_crop="pad", pad=1),
    ):
        result = train_crop(image, crop, generator(0, Purpose.CROP))
        assert result.shape == (6, 6, 3)
        assert np.array_equal(np.argwhere(result[:, :, 0]), [[2, 2], [2, 3], [3, 2], [3, 3]])


def test_crop_depends_on_seed_epoch_and_id_alone() -> None:
    crop, image = CropConfig(image_size=16), picture(64, 48)

    def view(seed: int, epoch: int, sample: int) -> bytes:
        return train_crop(image, crop, generator(seed, Purpose.CROP, epoch, sample)).tobytes()

    reference = view(1, 2, 3)
    assert view(1, 2, 3) == reference
    assert len({reference, view(0, 2, 3), view(1, 3, 2), view(1, 2, 4), view(2, 1, 3)}) == 5


def test_curriculum_keeps_the_proportion_of_resize_to_crop() -> None:
    smaller = CropConfig(image_size=224, eval_resize=256, pad=3).at(112)
    assert (smaller.image_size, smaller.eval_resize, smaller.pad) == (112, 128, 3)
    assert (smaller.jitter_min, smaller.jitter_max) == (128, 240)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 0}, r"data\.image_size must be at least 1, got 0"),
        ({"eval_resize": 0}, r"data\.eval_resize"),
        ({"pad": -1}, r"data\.pad"),
        (
            {"train_crop": "random"},
            r"data\.train_crop must be one of random_resized, scale_jitter, pad, center, got 'random'",
        ),
        ({"jitter_min": 300, "jitter_max": 299}, r"data\.jitter_max must be at least data\.jitter_min, got 299"),
        (
            {"policy": "autoaugment"},
            r"data\.policy must be one of trivial_augment_wide, rand_augment, three_augment, got",
        ),
        ({"policy_ops": 0}, r"data\.policy_ops"),
        ({"policy_magnitude": 11.0}, r"data\.policy_magnitude must be in \[0, 10\], got 11\.0"),
        ({"policy_magnitude_std": -0.5}, r"data\.policy_magnitude_std"),
        ({"repeats": 0}, r"data\.repeats must be at least 1, got 0"),
        ({"scale": (0.5, 0.2)}, r"data\.scale"),
        ({"ratio": (0.0, 1.0)}, r"data\.ratio"),
    ],
)
def test_bad_crop_settings_name_their_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CropConfig(**fields)  # type: ignore[arg-type]
