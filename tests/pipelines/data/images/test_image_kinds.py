"""Every kind of image file has its pixels, or its refusal in one line: the table of docs/bad-data.md, row by row."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import random
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.crop import CropConfig, Decoder, Interpolation
from pipelines.config.prepare import PrepareConfig
from pipelines.data.images import formats
from pipelines.data.images import pillow as decode
from pipelines.data.images.crops import IMAGE_FILE, eval_view, whole_views
from pipelines.data.images.jpeg import decode_region, read_header
from pipelines.data.images.kinds import kinds_of
from pipelines.data.images.pillow import DecodeError, OversizedImage, decode_rgb, resized_center
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.prepare import prepare
from pipelines.data.prepare.shard_writer import encode
from pipelines.data.prepare.source import SourceSample
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.stored_images import BadSample
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import load_whole
from tests.pipelines.conftest import written
from tests.pipelines.data.conftest import encoded, picture
from tests.pipelines.data.deep_files import png, ppm, tiff
from tests.pipelines.data.hostile import forged
from tests.pipelines.data.icc_profiles import P3_PRIMARIES, SRGB_PRIMARIES, grey_profile, p3_in_srgb, rgb_profile
from tests.pipelines.data.images.test_crops import assert_alike

PAGE = Path(__file__).parents[4] / "docs" / "bad-data.md"
SHADES = np.linspace(0, 1, 40 * 32).reshape(32, 40)
PHOTO = picture(60, 40)
SIDES = {form: Stored(form=form, size=16, quality=90, channels=3, pixels="displayed") for form in ("raw", "jpeg")}


def grey(bits: int) -> npt.NDArray[np.uint16]:
    """All shades from black to the brightest of these bits."""
    return np.rint(SHADES * (2**bits - 1)).astype(np.uint16)


def colour(bits: int, alpha: bool = False) -> npt.NDArray[np.uint16]:
    channels = [grey(bits), grey(bits)[:, ::-1], grey(bits) // 2]
    return np.stack([*channels, np.full_like(channels[0], 2**bits - 1)] if alpha else channels, axis=2)


def upper(samples: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.uint8]:
    """The upper 8 of these bits, in colour."""
    pixels = (samples.astype(np.uint32) >> (bits - 8)).astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]


def shades(scale: float = 255) -> npt.NDArray[np.uint8]:
    return np.repeat(np.rint(SHADES * scale).astype(np.uint8)[:, :, None], 3, axis=2)


def pil(samples: npt.NDArray[np.generic], form: str, **options: object) -> bytes:
    return encoded(Image.fromarray(samples), form, **options)


Expected = tuple[bytes, npt.NDArray[np.uint8], list[str]]
"""A file, its pixels, and what the report of prepare counts it as."""


def sample(data: bytes) -> SourceSample:
    return SourceSample(split="train", image=data, label=0, key="x")


def by_pillow(data: bytes, *kinds: str) -> Expected:
    """A file of 8 bits a sample, whose pixels Pillow alone decides."""
    return data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), list(kinds)


def deep(bits: int) -> list[Expected]:
    """Files of 16 bits a sample that use so many of them."""
    kind = f"{bits}-bit in 16-bit" if bits < 16 else "16-bit"
    in_grey, in_colour = upper(grey(bits), bits), upper(colour(bits), bits)
    return [
        (png(grey(bits)), in_grey, [kind, "grey"]),
        (png(np.dstack([grey(bits)] * 2)), in_grey, [kind, "transparent"]),
        (png(colour(bits)), in_colour, [kind]),
        (png(colour(bits, alpha=True)), in_colour, [kind, "transparent"]),
        (pil(grey(bits), "TIFF"), in_grey, [kind, "grey"]),
        (pil(grey(bits), "TIFF", compression="tiff_lzw"), in_grey, [kind, "grey"]),
        (tiff(grey(bits), photometric=1, order=">"), in_grey, [kind, "grey"]),
        (tiff(colour(bits), photometric=2), in_colour, [kind]),
        (tiff(colour(bits), photometric=2, order=">"), in_colour, [kind]),
        (ppm(grey(bits), 65535), in_grey, [kind, "grey"]),
    ]


def turned(form: str = "JPEG", **options: object) -> Expected:
    """A photo that viewers turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(io.BytesIO(encoded(PHOTO, form, **options))).convert("RGB")
    return encoded(PHOTO, form, exif=exif, **options), np.rot90(np.asarray(stored), -1), ["EXIF-rotated"]


def in_colours(profile: bytes, form: str = "JPEG", **options: object) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """A file with an ICC profile, and its pixels without."""
    file = encoded(PHOTO, form, icc_profile=profile, **options)
    return file, np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def wide_gamut(form: str) -> Expected:
    """A photo in Display P3."""
    file, pixels = in_colours(rgb_profile(P3_PRIMARIES), form)
    return file, np.rint(p3_in_srgb(pixels)).astype(np.uint8), ["ICC profile"]


def heic(image: Image.Image, **options: object) -> bytes:
    """A HEIC file without loss but the rounding of its colours."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return encoded(image, "HEIF", quality=-1, chroma=444, **options)


def from_a_phone() -> list[Expected]:
    """Upright, and turned by the file's own box `irot`, as iPhones do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(PHOTO)
    return [(heic(PHOTO), pixels, []), (heic(PHOTO, exif=exif.tobytes()), np.rot90(pixels, -1), [])]


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with a further segment in front."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def with_short_jfif(data: bytes) -> bytes:
    """A JPEG whose first segment has its name and nothing else."""
    return with_segment(data[:2] + data[4 + struct.unpack(">H", data[4:6])[0] :], 0xE0, b"JFIF\0")


HALF = (grey(12) // 2).astype(np.uint16)
UNIT = SHADES.astype(np.float32)
WHOLE = np.rint(SHADES * 200).astype(np.int32)
FRAMES = [picture(12, 10, seed).convert("P") for seed in range(3)]
TRANSLUCENT = Image.merge("RGBA", (*PHOTO.split(), Image.linear_gradient("L").resize(PHOTO.size)))
HEIF = importlib.util.find_spec("pillow_heif") is not None
LOSSY = {"HEIC, with the extra `heic`": 2, "ICC profile": 1}
"""Levels of 255 by which pixels may differ: HEIC codes YCbCr, and colours are converted in whole numbers."""
AVIF = [by_pillow(encoded(PHOTO, "AVIF"))] if features.check("avif") else []

READ: dict[str, list[Expected]] = {
    "colour, 8 bits a sample": [
        *(by_pillow(encoded(PHOTO, form)) for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")),
        *AVIF,
    ],
    "content of another format than the name": [by_pillow(encoded(PHOTO, "PNG"), "PNG named JPEG")],
    "grey, black and white": [
        by_pillow(encoded(PHOTO.convert("L")), "grey"),
        by_pillow(encoded(PHOTO.convert("1"), "PNG"), "grey"),
    ],
    "palette": [by_pillow(encoded(PHOTO.convert("P"), "PNG"), "palette")],
    "transparent": [
        (encoded(TRANSLUCENT, "PNG"), np.asarray(PHOTO), ["transparent"]),
        (encoded(TRANSLUCENT, "WEBP", lossless=True, exact=True), np.asarray(PHOTO), ["transparent"]),
        (encoded(FRAMES[0], "PNG", transparency=7), np.asarray(FRAMES[0].convert("RGB")), ["palette", "transparent"]),
        (encoded(PHOTO.convert("LA"), "PNG"), np.asarray(PHOTO.convert("L").convert("RGB")), ["grey", "transparent"]),
    ],
    "CMYK": [by_pillow(encoded(PHOTO.convert("CMYK")), "CMYK")],
    "EXIF rotation": [turned(), turned("PNG"), turned("TIFF"), turned("WEBP", lossless=True)],
    "HEIC, with the extra `heic`": from_a_phone() if HEIF else [],
    "ICC profile": [wide_gamut(form) for form in ("JPEG", "PNG", "TIFF")],
    "ICC profile of sRGB, damaged, or for other images": [
        (*in_colours(rgb_profile(SRGB_PRIMARIES)), []),
        (*in_colours(b"damaged"), []),
        (*in_colours(grey_profile(1.8)), []),
    ],
    "several frames": [
        by_pillow(encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "palette", "multi-frame"),
        by_pillow(encoded(PHOTO, "MPO", save_all=True, append_images=[FRAMES[0].convert("RGB")]), "multi-frame"),
        (
            encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.transpose(Image.Transpose.ROTATE_180)]),
            np.asarray(PHOTO),
            ["multi-frame"],
        ),
        (
            encoded(PHOTO, "WEBP", save_all=True, append_images=[Image.new("RGB", PHOTO.size)], lossless=True),
            np.asarray(PHOTO),
            ["multi-frame"],
        ),
    ],
    "metadata that Pillow cannot read": [
        (with_short_jfif(encoded(PHOTO)), decode_rgb(encoded(PHOTO)), ["damaged metadata"]),
        (with_short_jfif(encoded(PHOTO, progressive=True)), decode_rgb(encoded(PHOTO)), ["damaged metadata"]),
    ],
    "16 bits a sample": deep(16),
    "8, 10, 12 or 14 bits in 16": [each for bits in (8, 10, 12, 14) for each in deep(bits)]
    + [(ppm(colour(bits), 65535), upper(colour(bits), bits), [f"{bits}-bit in 16-bit"]) for bits in (8, 10, 12, 14)],
    "TIFF that declares its largest sample": [
        (tiff(HALF, photometric=1, largest=4095), upper(HALF, 12), ["12-bit in 16-bit", "grey"]),
        (tiff(HALF // 4, photometric=1, largest=4095), upper(HALF // 4, 12), ["12-bit in 16-bit", "grey"]),
        (tiff(HALF // 4, photometric=1, largest=65535), upper(HALF // 4, 10), ["10-bit in 16-bit", "grey"]),
    ],
    "PGM that declares its largest sample": [
        (ppm(HALF, 4095), upper(np.rint(HALF / 4095 * 65535), 16), ["16-bit", "grey"]),
    ],
    "TIFF whose zero is white": [
        (tiff(grey(12), photometric=0), 255 - upper(grey(12), 12), ["12-bit in 16-bit", "grey"]),
        (tiff(UNIT, photometric=0), 255 - shades(), ["float", "grey"]),
    ],
    "32 bits, whole numbers from 0 to 65,535": [
        (pil(WHOLE, "TIFF"), upper(WHOLE, 8), ["8-bit in 32-bit", "grey"]),
        (pil(WHOLE * 300, "TIFF"), upper(WHOLE * 300, 16), ["16-bit in 32-bit", "grey"]),
        (tiff(WHOLE.astype(np.uint32), photometric=1), upper(WHOLE, 8), ["8-bit in 32-bit", "grey"]),
    ],
    "floating point from 0 to 1, or to 16..255": [
        (pil(UNIT, "TIFF"), shades(), ["float", "grey"]),
        (pil(UNIT * 200, "TIFF"), shades(200), ["float", "grey"]),
        (pil(UNIT, "PPM"), shades(), ["float", "grey"]),
    ],
}

JPEG = encoded(PHOTO)
FRAME = JPEG.index(b"\xff\xc0")


def as_frame(marker: int, bits: int) -> bytes:
    """A JPEG that says that it is of another kind."""
    data = bytearray(JPEG)
    data[FRAME + 1], data[FRAME + 4] = marker, bits
    return bytes(data)


def box(brand: str, compatible: str = "") -> bytes:
    """The first box of a file, and nothing that belongs into the others."""
    brands = brand.encode() + bytes(4) + compatible.encode()
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)


CONVERT = ", which is not read here: convert it to JPEG or PNG, 8 bits a sample"
REFUSED: dict[str, dict[str, bytes]] = {
    "whole numbers below 0 or above 65,535": {
        "whole numbers from 0 to 1,000,000 do not fit 0 to 65,535: scale": pil(WHOLE * 5000, "TIFF"),
        "whole numbers from 0 to 4,000,000,000 do not fit": tiff((SHADES * 4e9).astype(np.uint32), photometric=1),
        "whole numbers from -1,000 to 1,000 do not fit": tiff((SHADES * 2000 - 1000).astype("i2"), photometric=1),
    },
    "floating point of any other range": {
        "floating point from 0 to 1.5 is neither 0 to 1 nor 0 to 255: scale": pil(UNIT * 1.5, "TIFF"),
        "floating point from -0.5 to 0.5 is neither": pil(UNIT - 0.5, "TIFF"),
        "floating point from nan to nan is neither": pil(UNIT * np.nan, "TIFF"),
        "floating point from 0 to 256 is neither": pil(UNIT * 256, "TIFF"),
    },
    "TIFF of samples that Pillow cannot read": {
        "a TIFF of 3 samples a pixel of 32 bits (floating point), photometric 2" + CONVERT: tiff(
            np.dstack([UNIT] * 3), photometric=2
        ),
        "a TIFF of 1 samples a pixel of 64 bits (floating point), photometric 1": tiff(SHADES, photometric=1),
        "a TIFF with 16 bits a sample in separate planes is not read": tiff(colour(12), photometric=2, planes=True),
    },
    "JPEG of 12 bits, lossless or hierarchical": {
        "a JPEG of 12 bits a sample" + CONVERT: as_frame(0xC1, 12),
        "a lossless JPEG of 16 bits a sample": as_frame(0xC3, 16),
        "a lossless JPEG of 8 bits a sample": as_frame(0xC3, 8),
        "a hierarchical JPEG of 8 bits a sample": as_frame(0xC5, 8),
        "a JPEG-LS image of 8 bits a sample": as_frame(0xF7, 8),
    },
    "another format": {
        "a video": box("isom"),
        "a JPEG 2000 image": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
        "a JPEG XL image": b"\xff\x0a" + bytes(100),
        "a Photoshop file": b"8BPS" + bytes(100),
        "an OpenEXR image": b"v/1\x01" + bytes(100),
        "a DICOM file": bytes(128) + b"DICM" + bytes(100),
        "a NumPy array": b"\x93NUMPY" + bytes(100),
        "a PDF document": b"%PDF-1.7\n" + bytes(100),
        "an SVG drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    },
    "Git LFS pointer": {
        "not an image but a Git LFS pointer (61 bytes): run git lfs pull": b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:0123456",
    },
    "damaged or cut short": {
        "OSError: image file is truncated": JPEG[:-40],
        "OSError: Truncated File Read": JPEG[:100],
        "a damaged JPEG (3 bytes)": JPEG[:3],
        "a damaged PNG (28 bytes)": encoded(PHOTO, "PNG")[:8] + bytes(20),
        "a damaged TIFF (40 bytes)": encoded(PHOTO, "TIFF")[:40],
    },
    "more than 100 million pixels": {
        "12000x12000 is more than 100,000,000 pixels": forged(12000, 12000),
        "12000x12001 is more than 100,000,000 pixels": forged(12000, 12001, "PNG"),
    },
    "anything else": {"not an image (5 bytes)": b"hello", "not an image (0 bytes)": b""},
}
ELSEWHERE = {
    "HEIC or AVIF, without its package": "test_what_is_missing_to_read_avif_and_heic_is_named",
    "long and thin": "test_a_long_thin_image_takes_the_memory_of_its_crop",
    "long and thin, at several scales": "test_a_long_thin_image_is_refused_at_several_scales",
    "more than 25 million pixels": "test_photographs_of_48_megapixels",
    "a side of more than 65,500 pixels, stored as JPEG": "test_images_that_do_not_fit_the_stored_form_are_bad_images",
}
"""Rows of the table with tests of their own."""


def test_the_page_has_a_row_for_each_kind() -> None:
    section = PAGE.read_text().split("\n## Kinds of images\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)
    assert sorted(rows[2:]) == sorted({**READ, **REFUSED, **ELSEWHERE})
    assert all(test in globals() for test in ELSEWHERE.values())


@pytest.mark.parametrize("row", READ)
def test_a_kind_that_is_read(row: str) -> None:
    if not READ[row]:
        pytest.skip("the extra heic is not installed")
    for data, pixels, kinds in READ[row]:
        decoded = decode_rgb(data, displayed=True)
        assert (decoded.dtype, decoded.shape) == (np.uint8, pixels.shape)
        assert np.abs(decoded.astype(int) - pixels).max() <= LOSSY.get(row, 0), (kinds, np.unique(decoded).tolist())
        assert kinds_of(data, "x.jpg" if row.startswith("content") else "x") == kinds
        for stored in (IMAGE_FILE, dataclasses.replace(IMAGE_FILE, pixels="displayed")):
            assert_alike(data, CropConfig(image_size=24, eval_resize=30), stored=stored)  # training and predict agree
        assert len(encode(sample(data), SIDES["raw"])) == 16 * 16 * 3


@pytest.mark.parametrize("row", REFUSED)
@pytest.mark.parametrize("decoder", ["fast", "exact"])
def test_a_kind_that_is_refused_says_what_it_is(row: str, decoder: Decoder) -> None:
    for reason, data in REFUSED[row].items():
        for use in (
            lambda: encode(sample(data), SIDES["raw"]),  # noqa: B023 - called here
            lambda: eval_view(data, IMAGE_FILE, CropConfig(image_size=24, decoder=decoder)),  # noqa: B023
        ):
            with pytest.raises(DecodeError) as refused:
                use()
            assert str(refused.value).startswith(reason)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("brand", "compatible"), [("avif", ""), ("mif1", "mif1avif"), ("heic", ""), ("mif1", "heic")])
def test_what_is_missing_to_read_avif_and_heic_is_named(
    brand: str, compatible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = box(brand, compatible)
    kind = "an AVIF image" if "avif" in brand + compatible else "a HEIC image"
    if kind == "an AVIF image" or HEIF:
        with pytest.raises(DecodeError, match=f"^{kind} that is damaged$"):
            decode_rgb(data)
    monkeypatch.setattr(formats, "FORMATS", ("JPEG", "PNG"))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it was not installed
    formats._heif_plugin.cache_clear()
    needed = {
        "an AVIF image": "which needs Pillow 11.3 or later with AVIF: pip install --upgrade pillow",
        "a HEIC image": "which needs the extra heic: pip install pillow-heif",
    }
    with pytest.raises(DecodeError, match=f"^{kind}, {needed[kind]}$"):
        decode_rgb(data)
    formats._heif_plugin.cache_clear()


# Metadata that libjpeg skips and Pillow fails on


def test_both_readers_accept_the_same_metadata() -> None:
    drawn = random.Random(0)
    contents = [b"", b"JFIF", b"JFIF\0", b"Exif\0\0", b"Exif\0\0MM\0*", b"Adobe", b"MPF\0", b"MPF\0MM\0*\0\0\0\x08"]
    contents += [
        b"ICC_PROFILE\0",
        b"ICC_PROFILE\0\1",
        b"Photoshop 3.0\0",
        b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff",
    ]
    repaired = 0
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE):
        for content in contents:
            padded = content + drawn.randbytes(drawn.randrange(9))
            for data in (with_segment(JPEG, marker, content), with_segment(JPEG, marker, padded)):
                header = read_header(data)
                assert header is not None
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    expected = decode_rgb(data)
                    repaired += "damaged metadata" in kinds_of(data, "x.jpg")
                region = decode_region(data, header, (0, 0, 60, 40))
                assert region is not None
                assert np.array_equal(region, expected)
    assert repaired >= 3


# Long and thin images


@pytest.mark.parametrize("size", [(900, 3), (3, 900), (901, 2), (2, 901), (1000, 1)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_centre_of_an_image_that_is_not_resized_whole(
    size: tuple[int, int], interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(*size)
    for shorter, side in ((20, 16), (20, 20), (20, 33)):
        whole = np.asarray(resized_center(image, shorter, side, interpolation)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "LARGE_PIXELS", 1000)
            part = np.asarray(resized_center(image, shorter, side, interpolation))
        assert part.shape == (side, side, 3)
        assert np.abs(part - whole).max() <= 1  # the box is a C float in Pillow: a pixel may round the other way


PEAK = """
import resource, sys
from pathlib import Path
from pipelines.data.images.pillow import CropConfig
from pipelines.data.shards.manifest import Stored
from pipelines.data.prepare.source import SourceSample
from pipelines.data.prepare.shard_writer import encode
from pipelines.data.images.crops import IMAGE_FILE, eval_view, train_view
import numpy as np
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def use(data, what):
    if what in ("fast", "exact"):
        crop = CropConfig(decoder=what)
        eval_view(data, IMAGE_FILE, crop)
        train_view(data, IMAGE_FILE, crop, np.random.default_rng(0))
    else:
        stored = Stored(form=what, size=0 if what == "original" else 256, quality=90, channels=3)
        encode(SourceSample(split="train", image=data, label=0, key="x"), stored)
small, large = (Path(name).read_bytes() for name in sys.argv[1:3])
use(small, sys.argv[3])
before = peak()
use(large, sys.argv[3])
print(peak() - before)
"""


def risen_mib(folder: Path, large: bytes, what: str) -> float:
    """Memory that one image takes in a fresh process, above what a small one takes."""
    (folder / "small").write_bytes(JPEG)
    (folder / "large").write_bytes(large)
    command = [sys.executable, "-c", PEAK, str(folder / "small"), str(folder / "large"), what]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    return float(ran.stdout)


@pytest.mark.parametrize("what", ["raw", "fast", "exact"])
def test_a_long_thin_image_takes_the_memory_of_its_crop(what: str, tmp_path: Path) -> None:
    """A PNG of 65,000x1 pixels would be 4 billion with its shorter side at 256."""
    assert risen_mib(tmp_path, encoded(picture(65000, 1), "PNG"), what) < 100


@pytest.mark.parametrize("decoder", ["fast", "exact"])
def test_a_long_thin_image_is_refused_at_several_scales(decoder: Decoder, tmp_path: Path) -> None:
    thin = encoded(picture(30000, 1), "PNG")
    crop = CropConfig(decoder=decoder)
    reason = "30000x1 with its shorter side at 256 would be 7680000x256, more than 25,000,000 pixels"
    with pytest.raises(OversizedImage, match=f"^{reason}$"):
        whole_views(thin, IMAGE_FILE, crop, (16, 256))
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "divider.png").write_bytes(thin)
    store = LocalStore(uri=str(tmp_path / "out"))
    manifest = written(open_source(str(tmp_path / "in"), holdout=0), store)
    item = WorkItem(epoch=0, pieces=((0, 0),), rows=1, image_size=1)
    with pytest.raises(BadSample, match=rf"sample 0 \(a/divider.png\) of shard .*: {reason}"):
        list(load_whole(store, manifest, item, (256,), crop))


def test_an_image_is_made_smaller_however_large_it_is() -> None:
    assert decode.resized_size(12000, 8000, 6000) == (9000, 6000)
    assert decode.resized_size(40_000, 1000, 640) == (25_600, 640)
    with pytest.raises(OversizedImage):
        decode.resized_size(40_000, 600, 1000)


# Large photographs


def photograph(width: int, height: int) -> Image.Image:
    return picture(width // 16, height // 16).resize((width, height), Image.Resampling.BILINEAR)


def test_photographs_of_48_megapixels(tmp_path: Path) -> None:
    """A phone's: stored in each form, and seen by training and predict, within the memory that the page states."""
    data = encoded(photograph(8064, 6048), quality=80)
    whole = decode_rgb(data)
    assert whole.shape == (6048, 8064, 3)
    photo = sample(data)
    assert encode(photo, IMAGE_FILE) == data
    side = Stored(form="raw", size=256, quality=0, channels=3)
    reduced = np.frombuffer(encode(photo, side), dtype=np.uint8).reshape(256, 256, 3)
    full = np.asarray(resized_center(Image.fromarray(whole), 256, 256))
    assert np.abs(reduced.astype(int) - full).mean() < 1
    small = Image.open(io.BytesIO(encode(photo, dataclasses.replace(side, form="jpeg", quality=90))))
    assert small.size == (341, 256)
    views = [eval_view(data, IMAGE_FILE, CropConfig(decoder=decoder)) for decoder in ("fast", "exact")]
    assert np.abs(views[0].astype(int) - views[1]).max() <= 2
    del whole
    for what, most in (("raw", 100), ("jpeg", 100), ("fast", 600), ("exact", 600), ("original", 600)):
        assert risen_mib(tmp_path, data, what) < most, what


def test_the_limit_is_a_setting_of_prepare() -> None:
    photo = sample(encoded(photograph(1200, 900)))
    with pytest.raises(OversizedImage, match=r"^1200x900 is more than 1,000,000 pixels$"):
        encode(photo, SIDES["raw"], 1_000_000)
    larger = PrepareConfig(max_megapixels=200, form="jpeg", size=256)
    assert larger.max_megapixels == 200
    with pytest.raises(ValueError, match=r"prepare\.max_megapixels must be at least 1, got 0"):
        PrepareConfig(max_megapixels=0)


# Images that the stored form cannot hold


@pytest.mark.usefixtures("ray_local")
def test_images_that_do_not_fit_the_stored_form_are_bad_images(folder: Path, tmp_path: Path) -> None:
    """Counted in the budget by name, as images that do not decode are."""
    (folder / "a" / "panorama.png").write_bytes(encoded(Image.new("RGB", (66_000, 12)), "PNG"))
    (folder / "b" / "IMG_1.jpg").write_bytes(encoded(Image.new("RGB", (1200, 900))))
    source, store = open_source(str(folder)), LocalStore(uri=str(tmp_path / "out"))

    def settings(**more: int) -> PrepareConfig:
        return PrepareConfig(form="jpeg", size=16, min_shards=1, **more)  # type: ignore[arg-type]

    panorama = r"a/panorama\.png \(66000x12 cannot be stored as JPEG, which has at most 65,500 pixels a side\)"
    with pytest.raises(UserError, match=rf"^1 of 92 images cannot be used: {panorama}\. Repair"):
        prepare(source, store, settings())
    both = rf"^2 of 92 images cannot be used: {panorama}; b/IMG_1\.jpg \(1200x900 is more than 1,000,000 pixels\)"
    with pytest.raises(UserError, match=both):
        prepare(source, LocalStore(uri=str(tmp_path / "other")), settings(max_megapixels=1))
    manifest = prepare(source, store, settings(max_bad_images=1))
    assert manifest.total_rows == 91
    assert pq.read_table(tmp_path / "out" / "rejected.parquet")["key"].to_pylist() == ["a/panorama.png"]
    with pytest.raises(UserError, match="with other settings"):
        prepare(source, store, settings(max_bad_images=2, max_megapixels=1))


@pytest.mark.usefixtures("ray_local")
def test_more_than_training_decodes_is_not_stored_as_it_is(folder: Path, tmp_path: Path) -> None:
    config = PrepareConfig(max_megapixels=200)
    with pytest.raises(UserError, match=r"prepare\.max_megapixels must be at most 100 for form \"original\""):
        prepare(open_source(str(folder)), LocalStore(uri=str(tmp_path / "out")), config)
