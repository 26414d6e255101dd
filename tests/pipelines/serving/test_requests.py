"""Bodies of requests: every kind gives the same pixels, and whatever is wrong has a status and a reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest

from pipelines.config.crop import CropConfig
from pipelines.serving.preprocessing import MAX_REQUEST_BYTES, Preprocessing, Refused
from pipelines.serving.requests import read_body, read_images
from tests.pipelines.conftest import COLOURS, picture
from tests.pipelines.serving.requests_to_refuse import base64_of, file_of, npy_of

SIDE = 4
PICTURES = Preprocessing(crop=CropConfig(image_size=SIDE, eval_resize=SIDE), class_names=("azure", "lime"))
PIXELS = np.arange(2 * SIDE * SIDE * 3, dtype=np.uint8).reshape(2, SIDE, SIDE, 3)
FILE = file_of(picture(COLOURS["lime"], seed=1))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda image: {"instances": [{"image": image}, {"image": image}]},
        lambda image: {"instances": [image, image]},
        lambda image: {"inputs": [image, image]},
        lambda image: {"inputs": {"image": [image, image]}},
    ],
)
@pytest.mark.parametrize("image", [base64_of(FILE), PIXELS[0].tolist()], ids=["base64", "array"])
def test_json_in_all_forms_of_mlflow(request_of, image) -> None:
    expected = PIXELS[0] if isinstance(image, list) else PICTURES.file(FILE)
    found = read_images("application/json; charset=utf-8", json.dumps(request_of(image)).encode(), PICTURES)
    np.testing.assert_array_equal(found, np.stack([expected, expected]))


def test_files_and_arrays_as_they_are() -> None:
    np.testing.assert_array_equal(read_images("image/png", FILE, PICTURES), PICTURES.file(FILE)[None])
    np.testing.assert_array_equal(read_images("application/x-npy", npy_of(PIXELS), PICTURES), PIXELS)
    np.testing.assert_array_equal(read_images("application/x-npy", npy_of(PIXELS[1]), PICTURES), PIXELS[1:])


def header(shape: str) -> bytes:
    """numpy's file format with a header of one's own and four bytes of data."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"1234"


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("image/jpeg", b"hello", 422, r"the image: not an image \(5 bytes\)"),
        ("text/html", b"hello", 415, "content-type text/html: send image/jpeg"),
        ("", FILE, 415, "content-type missing"),
        ("application/json", b"{", 400, "not JSON"),
        ("application/json", b"\xff", 400, "not JSON"),
        ("application/json", b"[" * 100_000, 400, "the JSON is nested too deeply"),
        ("application/json", b"[1]", 400, "send {"),
        ("application/json", b"{}", 400, "send {"),
        ("application/json", b'{"instances": [], "inputs": []}', 400, "send {"),
        ("application/json", b'{"instances": 3}', 400, "send {"),
        ("application/json", b'{"inputs": {"img": []}}', 400, "send {"),
        ("application/json", b'{"instances": []}', 400, "a request holds 1 to 1,024 images, this one 0"),
        ("application/json", b'{"instances": [{"img": 1}]}', 400, "an instance has no \"image\", but 'img'"),
        ("application/json", b'{"instances": [{}]}', 400, 'an instance has no "image", but nothing'),
        ("application/x-npy", b"hello", 400, "not an array as numpy.save writes it"),
        ("application/x-npy", npy_of(PIXELS.astype(float)), 422, "an array float64"),
        ("application/x-npy", npy_of(np.array([{}], dtype=object)), 422, "an array object"),
        ("application/x-npy", npy_of(PIXELS)[:-1], 400, "has 96 values, 95 were sent"),
        ("application/x-npy", npy_of(PIXELS[:, 1:]), 422, "image 0: 3x4x3, this model takes 4x4x3"),
        ("application/x-npy", header("(1000000, 1000000, 1000000, 3)"), 400, "values, 4 were sent"),
        ("application/x-npy", header("(0, 4, 4, 3)"), 400, "has 0 values, 4 were sent"),
        ("application/x-npy", header("'oops'"), 400, "not an array as numpy.save writes it"),
    ],
)
def test_bad_requests(kind: str, body: bytes, status: int, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        read_images(kind, body, PICTURES)
    assert reason in str(refused.value) or str(refused.value).startswith(reason.replace("\\", ""))
    assert refused.value.status == status


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)


def test_a_body_that_is_too_large_is_heard_out_and_not_kept() -> None:
    half = MAX_REQUEST_BYTES // 2
    assert len(asyncio.run(read_body(chunks(half, half)))) == MAX_REQUEST_BYTES
    for sizes, told in (((half, half, 1, 9), "33,554,442"), ((half,) * 100, "285,212,672")):
        with pytest.raises(Refused, match=rf"has {told} bytes or more, 33,554,432 are allowed") as refused:
            asyncio.run(read_body(chunks(*sizes)))
        assert refused.value.status == 413
