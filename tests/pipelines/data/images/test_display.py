"""Files as viewers show them: turned by EXIF, coloured by ICC, in every path and to the bit; or as stored, if asked."""

from __future__ import annotations

import dataclasses
import io
import struct
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.config.crop import CropConfig, TrainCrop
from pipelines.data.images.crops import IMAGE_FILE, eval_view, train_view, whole_views
from pipelines.data.images.display import display_of_jpeg
from pipelines.data.images.pillow import decode_rgb
from pipelines.data.images.stored import Stored, image_file
from pipelines.data.prepare.shard_writer import encode
from pipelines.data.prepare.source import SourceSample
from pipelines.data.tasks.encoded import look
from pipelines.serving.preprocessing import Preprocessing
from tests.pipelines.data.conftest import encoded
from tests.pipelines.data.icc_profiles import (
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    coded,
    grey_profile,
    p3_in_srgb,
    rgb_profile,
)
from tests.pipelines.data.images.test_crops import textured

DISPLAYED = dataclasses.replace(IMAGE_FILE, pixels="displayed")
PHOTO = textured(67, 41)
CROPS = (
    CropConfig(image_size=24, eval_resize=30),
    CropConfig(image_size=24, eval_resize=30, train_crop="scale_jitter", jitter_min=26, jitter_max=44),
    CropConfig(image_size=24, eval_resize=24, train_crop="pad", decoder="exact"),
)
P3 = rgb_profile(P3_PRIMARIES)
Pixels = npt.NDArray[np.uint8]


def exif(orientation: int, order: str = ">", kind: str = "H") -> bytes:
    """An EXIF segment's content with the orientation alone."""
    mark, number = {">": b"MM\0*", "<": b"II*\0"}[order], {"B": 1, "H": 3, "I": 4}[kind]
    entry = struct.pack(f"{order}HHI", 0x0112, number, 1) + struct.pack(f"{order}{kind}", orientation).ljust(4, b"\0")
    return b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


def upright(stored: Pixels, orientation: int) -> Pixels:
    """The upright image, pixel by pixel, from the definition in EXIF 2.32, 4.6.4.A: where row 0 and column 0 are."""
    row_0, column_0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    rows, columns = stored.shape[:2]
    shape = (columns, rows, 3) if row_0 in ("left", "right") else stored.shape
    shown = np.empty(shape, dtype=np.uint8)
    last_y, last_x = shape[0] - 1, shape[1] - 1
    for row, column in product(range(rows), range(columns)):
        place = {}
        for side, step in ((row_0, row), (column_0, column)):
            axis = "y" if side in ("top", "bottom") else "x"
            place[axis] = {"top": step, "left": step, "bottom": last_y - step, "right": last_x - step}[side]
        shown[place["y"], place["x"]] = stored[row, column]
    return shown


def png(pixels: Pixels) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG")


def views(file: bytes, stored: Stored, crop: CropConfig) -> list[Pixels]:
    """What training, evaluation, and evaluation at several scales make of a file."""
    draws = [train_view(file, stored, crop, np.random.default_rng(seed)) for seed in range(5)]
    return [*draws, eval_view(file, stored, crop), *whole_views(file, stored, crop, (20, 41, 67))]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:2:0"}, {"grey": True}])
def test_a_rotated_jpeg_is_its_upright_twin_to_the_bit(orientation: int, options: dict[str, bool]) -> None:
    """In every crop of both decoders: the twin is a PNG of the upright pixels."""
    photo = PHOTO.convert("L") if options.pop("grey", False) else PHOTO
    file = encoded(photo, exif=exif(orientation), **options)  # type: ignore[arg-type]
    stored = decode_rgb(file)
    assert stored.shape == (41, 67, 3)
    twin = upright(stored, orientation)
    assert np.array_equal(decode_rgb(file, displayed=True), twin)
    for crop in CROPS:
        for view, expected in zip(views(file, DISPLAYED, crop), views(png(twin), IMAGE_FILE, crop), strict=True):
            assert np.array_equal(view, expected)
        for view, expected in zip(views(file, IMAGE_FILE, crop), views(png(stored), IMAGE_FILE, crop), strict=True):
            assert np.array_equal(view, expected)  # as stored, if the data set says so


def test_prepare_and_serve_turn_alike() -> None:
    """Prepared as pixels, as JPEG, or as it is; and read by a model: a rotated photo is its upright twin."""
    file = encoded(PHOTO, exif=exif(6))
    twin = png(upright(decode_rgb(file), 6))

    def prepared(data: bytes, **form: object) -> bytes:
        stored = dataclasses.replace(DISPLAYED, **form)  # type: ignore[arg-type]
        return encode(SourceSample(split="train", image=data, label=0, key="x"), stored)

    for form in (
        {"form": "raw", "size": 16},
        {"form": "jpeg", "size": 30, "quality": 90},
        {"form": "jpeg", "size": 99},
    ):
        assert prepared(file, **form) == prepared(twin, **form)
    assert prepared(file) == file  # the source's bytes, turned when they are decoded
    smaller = Image.open(io.BytesIO(prepared(file, form="jpeg", size=30)))
    assert (smaller.size, smaller.getexif().get(0x0112)) == ((30, 49), None)
    about = {**CROPS[0].shown, "class_names": ["a", "b"], "pixels": "displayed"}
    assert np.array_equal(Preprocessing.of(about).read([file]), Preprocessing.of(about).read([twin]))
    del about["pixels"]  # a version that was registered before there was the setting
    assert np.array_equal(Preprocessing.of(about).file(file), eval_view(file, IMAGE_FILE, CROPS[0]))
    assert image_file(about).displayed is False


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_other_formats_are_turned(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    tag = Image.Exif()
    tag[0x0112] = 8
    file = encoded(PHOTO, form, exif=tag, **options)
    plain = decode_rgb(encoded(PHOTO, form, **options))
    assert np.array_equal(decode_rgb(file, displayed=True), upright(plain, 8))


@pytest.mark.parametrize(
    ("content", "orientation"),
    [
        (exif(6, "<"), 6),
        (exif(6, kind="I"), 6),
        (exif(6, "<", kind="B"), 6),
        (exif(0), 1),
        (exif(9), 1),
        (b"Exif\0\0", 1),
        (b"Exif\0\0MM\0*\0\0\0\x08", 1),
        (b"Exif\0\0MM\0*\xff\xff\xff\xff", 1),
        (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12", 1),
        (exif(6).replace(struct.pack(">HHI", 0x0112, 3, 1), struct.pack(">HHI", 0x0112, 12, 1)), 1),
        (b"http://ns.adobe.com/xap/1.0/\0", 1),
    ],
)
def test_an_orientation_that_is_damaged_is_none(content: bytes, orientation: int) -> None:
    file = encoded(PHOTO, exif=content)
    assert display_of_jpeg(file).orientation == orientation
    assert np.array_equal(decode_rgb(file, displayed=True), upright(decode_rgb(file), orientation))


# Colours


def alike(pixels: npt.NDArray[np.generic], expected: npt.NDArray[np.float64], most: int = 1) -> bool:
    return bool(np.abs(pixels.astype(float) - expected).max() <= most)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_display_p3_becomes_srgb(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    file = encoded(PHOTO, form, icc_profile=P3, **options)
    stored = decode_rgb(file)
    expected = p3_in_srgb(stored)
    assert np.abs(expected - stored).max() > 20
    assert alike(decode_rgb(file, displayed=True), expected)


@pytest.mark.parametrize("orientation", [1, 5, 8])
def test_colours_are_converted_before_anything_is_resized(orientation: int) -> None:
    file = encoded(PHOTO, icc_profile=P3, exif=exif(orientation))
    shown = decode_rgb(file, displayed=True)
    for crop in CROPS:
        for view, expected in zip(views(file, DISPLAYED, crop), views(png(shown), IMAGE_FILE, crop), strict=True):
            assert np.array_equal(view, expected)
    for plain in (IMAGE_FILE, dataclasses.replace(DISPLAYED, form="jpeg")):
        assert look(file, plain).coded  # a device decodes it
    sent = look(file, DISPLAYED)  # the host does, since a device does neither
    assert (sent.coded, sent.data) == (False, shown.tobytes())
    assert (sent.width, sent.height) == shown.shape[1::-1]
    assert look(encoded(PHOTO), DISPLAYED).coded


def test_a_grey_profile_converts_grey_images_only() -> None:
    bright = grey_profile(1.8)
    file = encoded(PHOTO.convert("L"), icc_profile=bright)
    expected = coded((decode_rgb(file) / 255) ** 1.8) * 255
    shown = decode_rgb(file, displayed=True)
    assert alike(shown, expected, most=2)  # LittleCMS interpolates between the levels next to black
    crop = CropConfig(image_size=41, eval_resize=41)
    assert np.array_equal(eval_view(file, DISPLAYED, crop), shown[:, 13:54])  # the fast path too
    for other in (encoded(PHOTO, icc_profile=bright), encoded(PHOTO.convert("CMYK"), icc_profile=P3)):
        assert np.array_equal(decode_rgb(other, displayed=True), decode_rgb(other))
    tinted = encoded(PHOTO.convert("L"), icc_profile=P3)  # grey in the colours of a wide gamut is grey
    assert np.abs(decode_rgb(tinted, displayed=True).astype(int) - decode_rgb(tinted)).max() <= 1


@pytest.mark.parametrize(
    "profile", [rgb_profile(SRGB_PRIMARIES), b"no profile", P3[:200], P3.replace(b"rTRC", b"xTRC")]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_srgb_and_damaged_profiles_leave_the_pixels_as_they_are(profile: bytes, form: str) -> None:
    file = encoded(PHOTO, form, icc_profile=profile)
    assert np.array_equal(decode_rgb(file, displayed=True), decode_rgb(file))


def test_a_profile_in_several_segments() -> None:
    long = P3[:128] + P3[128:] + bytes(70_000)
    long = struct.pack(">I", len(long)) + long[4:]
    file = encoded(PHOTO, icc_profile=long)
    assert display_of_jpeg(file).profile == long
    assert alike(decode_rgb(file, displayed=True), p3_in_srgb(decode_rgb(file)))
    first = file.index(b"ICC_PROFILE\0")
    missing = file[: first + 12] + b"\x02" + file[first + 13 :]
    assert display_of_jpeg(missing).profile == b""


def test_a_training_crop_is_drawn_in_the_upright_image() -> None:
    """The crops of a wide image that is stored as a tall one are those of a wide image."""
    file = encoded(PHOTO.transpose(Image.Transpose.ROTATE_90), exif=exif(6))
    names: tuple[TrainCrop, ...] = ("random_resized", "scale_jitter", "pad", "center")
    for name in names:
        crop = CropConfig(image_size=24, eval_resize=30, jitter_min=26, jitter_max=44, train_crop=name)
        twin = png(decode_rgb(file, displayed=True))
        for seed in range(5):
            turned, expected = (train_view(each, DISPLAYED, crop, np.random.default_rng(seed)) for each in (file, twin))
            assert np.array_equal(turned, expected)
