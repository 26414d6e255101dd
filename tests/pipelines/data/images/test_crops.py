"""The fast path against the exact one: the same rows to the bit, the same refusals, resized within a bound."""

from __future__ import annotations

import dataclasses
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from pipelines.config.crop import CropConfig, Interpolation
from pipelines.data.images import jpeg, native
from pipelines.data.images import resize as resizing
from pipelines.data.images.crops import IMAGE_FILE, eval_view, train_view, train_views, whole_views
from pipelines.data.images.jpeg import decode_region, decode_top, read_header
from pipelines.data.images.native import jpeg_region
from pipelines.data.images.pillow import DecodeError, decode_rgb
from pipelines.data.images.resize import resize
from pipelines.data.images.stored import Stored
from pipelines.data.order.rng import Purpose, generator
from tests.pipelines.data.conftest import encoded, picture

CROPS = ("random_resized", "scale_jitter", "pad", "center")
MEAN, MOST = 0.3, {"bilinear": 2, "bicubic": 16}
"""The bound: levels of 255 by which a view differs, on average and at most."""


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """With edges and noise, as photographs have them."""
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    pixels = np.asarray(picture(width, height, seed)).astype(float) + noise
    pixels[:: max(1, height // 5)] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


JPEGS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restart in each row": {"restart_marker_rows": 1},
    "restart in each third block": {"restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
    "fine": {"quality": 100},
    "coarse": {"quality": 20},
    "rotated by EXIF": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    "commented": {"comment": b"\xff\xd9\xff\xc0" * 9},
}


NATIVE = pytest.mark.skipif(jpeg_region() is None, reason="no C compiler here")


@pytest.fixture(params=[pytest.param("native", marks=NATIVE), "libjpeg-turbo"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With our own code, and without, as where there is no C compiler."""
    if request.param != "native":
        monkeypatch.setattr(jpeg, "jpeg_region", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(90, 70), (33, 129), (1, 1), (3, 3), (5, 40), (7, 300), (300, 7)])
@pytest.mark.usefixtures("decoder")
def test_regions_of_a_jpeg_are_pillows_to_the_bit(name: str, size: tuple[int, int]) -> None:
    data = encoded(textured(*size), "JPEG", **JPEGS[name])
    expected, header = decode_rgb(data), read_header(data)
    assert header is not None
    assert (header.width, header.height) == size
    drawn = random.Random(name)
    for _ in range(20):
        left, top = drawn.randrange(size[0]), drawn.randrange(size[1])
        right, bottom = drawn.randint(left + 1, size[0]), drawn.randint(top + 1, size[1])
        region = decode_region(data, header, (left, top, right, bottom))
        assert region is not None
        assert np.array_equal(region, expected[top:bottom, left:right])


@pytest.mark.parametrize("sampling", ["411", "440", "Gray"])
@pytest.mark.usefixtures("decoder")
def test_regions_of_a_jpeg_with_rare_sampling(sampling: str) -> None:
    pixels = np.array(textured(90, 70))
    if sampling == "Gray":
        data = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    else:
        data = simplejpeg.encode_jpeg(pixels, colorsubsampling=sampling)
    header = read_header(data)
    assert header is not None
    region = decode_region(data, header, (11, 9, 77, 43))
    assert region is not None
    assert np.array_equal(region, decode_rgb(data)[9:43, 11:77])


@NATIVE
@pytest.mark.parametrize("name", JPEGS)
def test_our_own_code_is_for_plain_files(name: str) -> None:
    data = encoded(textured(90, 70), "JPEG", **JPEGS[name])
    region, pixels = jpeg_region(), np.empty((70, 90, 3), dtype=np.uint8)
    assert region is not None
    taken = region(data, len(data), 0, 0, 90, 70, pixels.ctypes.data)
    assert bool(taken) == (name not in ("progressive", "rgb"))
    if taken:
        assert np.array_equal(pixels, decode_rgb(data))
    assert not region(data, len(data), 0, 0, 91, 70, pixels.ctypes.data)
    assert not region(data, len(data), 5, 5, 5, 6, pixels.ctypes.data)


@NATIVE
def test_our_own_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jpeg_region.__wrapped__() is not None
    [library] = (tmp_path / "resnet-ray").iterdir()
    first = library.stat().st_mtime_ns
    assert jpeg_region.__wrapped__() is not None
    assert library.stat().st_mtime_ns == first


@pytest.mark.parametrize("lacking", ["compiler", "home", "sense"])
def test_without_a_compiler_there_is_no_code_of_our_own(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if lacking == "compiler":
        monkeypatch.setenv("PATH", "")
    elif lacking == "home":
        (tmp_path / "resnet-ray").write_text("a file")
    else:
        (tmp_path / "senseless.c").write_text("int")
        monkeypatch.setattr(native, "SOURCE", tmp_path / "senseless.c")
    assert jpeg_region.__wrapped__() is None


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(90, 70), (33, 129), (1, 1), (7, 300)])
def test_upper_rows_of_a_jpeg_are_pillows_to_the_bit(name: str, size: tuple[int, int]) -> None:
    data = encoded(textured(*size), "JPEG", **JPEGS[name])
    expected, header = decode_rgb(data), read_header(data)
    assert header is not None
    assert (header.width, header.height) == size
    for rows in (1, 7, 8, 15, 16, 30, 31, 32, 60, size[1]):
        rows = min(rows, size[1])
        top = decode_top(data, header, rows)
        assert top is not None
        assert np.array_equal(top[:rows], expected[:rows])


def test_nothing_below_the_rows_asked_for_is_decoded() -> None:
    data = encoded(textured(200, 400))
    header = read_header(data)
    assert header is not None
    top = decode_top(data, header, 100)
    assert top is not None
    assert top.shape == (112, 200, 3)


def test_a_long_thin_jpeg() -> None:
    data = encoded(textured(1, 5000))
    header = read_header(data)
    assert header is not None
    top = decode_top(data, header, 5000)
    assert top is not None
    assert np.array_equal(top, decode_rgb(data))
    assert_alike(data, CropConfig(image_size=16, eval_resize=20))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", CROPS)
def test_views_are_within_the_bound_of_the_exact_ones(kind: Any, interpolation: Interpolation) -> None:
    crop = CropConfig(
        image_size=64, train_crop=kind, interpolation=interpolation, eval_resize=73, jitter_min=73, jitter_max=140
    )
    means = [assert_alike(encoded(textured(150, 110, seed), quality=92), crop, seed) for seed in range(12)]
    if kind == "pad":
        assert set(means) == {0.0}


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_raw_pixels(kind: Any, channels: int) -> None:
    stored = Stored(form="raw", size=80, quality=0, channels=channels)
    image = textured(80, 80)
    record = (image.convert("L") if channels == 1 else image).tobytes()
    crop = CropConfig(image_size=64, train_crop=kind, eval_resize=73, jitter_min=73, jitter_max=140)
    assert_alike(memoryview(record), crop, stored=stored)


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (73, 73), (73, 90), (64, 300), (200, 10), (1, 1)])
@pytest.mark.parametrize("kind", CROPS)
def test_images_smaller_than_the_crop_and_of_its_size(size: tuple[int, int], kind: Any) -> None:
    crop = CropConfig(image_size=64, train_crop=kind, eval_resize=73, jitter_min=73, jitter_max=140, pad=5)
    assert_alike(encoded(textured(*size), "PNG"), crop)
    assert_alike(encoded(textured(*size)), crop)
    assert_alike(encoded(textured(*size)), dataclasses.replace(crop, eval_resize=40, pad=100))


PHOTO = textured(60, 40)
ODD = {
    "png": encoded(PHOTO, "PNG"),
    "webp": encoded(PHOTO, "WEBP"),
    "gif": encoded(PHOTO, "GIF"),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "cmyk": encoded(PHOTO.convert("CMYK")),
    "grey": encoded(PHOTO.convert("L")),
    "16 bit": encoded(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27), "PNG"),
    "palette": encoded(PHOTO.convert("P"), "PNG", transparency=bytes(range(256))),
    "ends in zeros": encoded(PHOTO) + bytes(10),
    "two in one": encoded(PHOTO) + encoded(picture(9, 9)),
    "without its end": encoded(PHOTO)[:-2],
    "truncated": encoded(PHOTO)[:-40],
    "truncated, but for its end": encoded(PHOTO)[:-900] + b"\xff\xd9",
    "truncated header": encoded(PHOTO)[:150],
    "height of zero": (lambda data, at: data[:at] + b"\0\0" + data[at + 2 :])(
        encoded(PHOTO), encoded(PHOTO).index(b"\xff\xc0") + 5
    ),
    "too large": (lambda data, at: data[:at] + b"\x2e\xe0\x2e\xe0" + data[at + 4 :])(
        encoded(PHOTO), encoded(PHOTO).index(b"\xff\xc0") + 5
    ),
    "nothing": b"",
    "start and end": b"\xff\xd8\xff\xd9",
    "an error page": b"<Error><Code>NoSuchKey</Code></Error>",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.usefixtures("decoder")
def test_odd_files_have_the_same_pixels_or_the_same_refusal(name: str) -> None:
    for seed in range(4):
        assert_alike(ODD[name], CropConfig(image_size=24, eval_resize=30), seed)


def test_the_refusal_of_an_oversized_jpeg_says_how_large_it_is() -> None:
    with pytest.raises(DecodeError, match="12000x12000 is more than 100,000,000 pixels"):
        eval_view(ODD["too large"], IMAGE_FILE, CropConfig())


@pytest.mark.usefixtures("decoder")
def test_damaged_jpegs_have_the_same_pixels_or_the_same_refusal() -> None:
    """libjpeg warns of most damage and goes on, Pillow says nothing; where it gives up, rows have not been written."""
    drawn = random.Random(0)
    files = [encoded(PHOTO, "JPEG", **options) for options in JPEGS.values()]
    refused = 0
    for number in range(300):
        data = bytearray(drawn.choice(files))
        for _ in range(drawn.randint(1, 4)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused += assert_alike(bytes(data), CropConfig(image_size=24), number) is None
    assert 30 < refused < 150


def test_several_views_are_those_that_would_be_drawn_one_by_one() -> None:
    data, crop = encoded(textured(150, 110)), CropConfig(image_size=32)

    def streams() -> list[np.random.Generator]:
        return [generator(0, Purpose.CROP, epoch, 7) for epoch in range(5)]

    together = train_views(data, IMAGE_FILE, crop, streams())
    for view, rng in zip(together, streams(), strict=True):
        assert np.array_equal(view, train_view(data, IMAGE_FILE, crop, rng))
    assert len({view.tobytes() for view in together}) == 5


def test_both_paths_leave_a_stream_where_a_policy_draws_on() -> None:
    crop = CropConfig(image_size=32)
    after = []
    for decoder in ("fast", "exact"):
        rng = generator(0, Purpose.CROP, 0, 7)
        train_view(encoded(textured(150, 110)), IMAGE_FILE, dataclasses.replace(crop, decoder=decoder), rng)
        after.append(rng.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_views(interpolation: Interpolation) -> None:
    fast = CropConfig(interpolation=interpolation)
    exact = dataclasses.replace(fast, decoder="exact")
    data = encoded(textured(91, 70))
    views = [whole_views(data, IMAGE_FILE, crop, (35, 70, 100)) for crop in (fast, exact)]
    assert [view.shape for view in views[0]] == [(35, 45, 3), (70, 91, 3), (100, 130, 3)]
    for one, other in zip(*views, strict=True):
        assert within_bound(one, other, interpolation) < MEAN
    assert np.array_equal(views[0][1], decode_rgb(data))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_processors_without_vectors_have_pillows_filter(
    monkeypatch: pytest.MonkeyPatch, interpolation: Interpolation
) -> None:
    pixels, box = np.asarray(textured(91, 70)), (3.25, 0.5, 80.75, 66.0)
    fast = resize(pixels, box, (40, 30), interpolation)
    grey = resize(pixels[:, :, :1], box, (40, 30), interpolation)
    monkeypatch.setattr(resizing, "vectors", None)
    assert within_bound(fast, resize(pixels, box, (40, 30), interpolation), interpolation) < MEAN
    assert within_bound(grey, resize(pixels[:, :, :1], box, (40, 30), interpolation), interpolation) < MEAN


def assert_alike(
    record: bytes | memoryview, crop: CropConfig, seed: int = 0, stored: Stored = IMAGE_FILE
) -> float | None:
    """Both paths make alike views of a record, whose mean difference is returned, or both refuse it alike: None."""
    exact = dataclasses.replace(crop, decoder="exact")
    differences = []
    for make in (
        lambda crop: train_view(record, stored, crop, np.random.default_rng(seed)),
        lambda crop: eval_view(record, stored, crop),
    ):
        try:
            expected = make(exact)
        except DecodeError as refusal:
            with pytest.raises(DecodeError) as raised:
                make(crop)
            assert str(raised.value) == str(refusal)
            return None
        view = make(crop)
        assert (view.shape, view.dtype) == ((crop.image_size, crop.image_size, 3), np.dtype(np.uint8))
        differences.append(within_bound(view, expected, crop.interpolation))
        assert differences[-1] <= MEAN
    return differences[0]


def within_bound(view: npt.NDArray[np.uint8], exact: npt.NDArray[np.uint8], interpolation: Interpolation) -> float:
    difference = np.abs(view.astype(int) - exact)
    assert difference.max() <= MOST[interpolation]
    return float(difference.mean())
