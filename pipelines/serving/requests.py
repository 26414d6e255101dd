"""Read the images in the body of an HTTP request. Pure functions; no Ray, no torch.

A body is an image file (`image/…`), an array as `numpy.save` writes it (`application/x-npy`), or the JSON of MLflow's
server. So a client can switch between MLflow's server and this one.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import AsyncIterator

import numpy as np

from pipelines.serving.preprocessing import (
    MALFORMED,
    MAX_REQUEST_BYTES,
    NOT_AN_IMAGE,
    TOO_LARGE,
    Pixels,
    Preprocessing,
    Refused,
)

COLUMN = "image"
_FORMS = ("instances", "inputs")
_UNSUPPORTED = 415
_MOST_READ_BYTES = 8 * MAX_REQUEST_BYTES  # of a too large body: a client that still sends does not read the response
_ONE_IMAGE, _BATCH = 3, 4  # dimensions


async def read_body(chunks: AsyncIterator[bytes]) -> bytes:
    """Read a body, and keep at most the allowed size in memory. Raises `Refused` if the body is larger."""
    body, size = bytearray(), 0
    async for chunk in chunks:
        size += len(chunk)
        if size <= MAX_REQUEST_BYTES:
            body += chunk
        elif size > _MOST_READ_BYTES:
            break
    if size > MAX_REQUEST_BYTES:
        raise Refused(TOO_LARGE, f"the request has {size:,} bytes or more, {MAX_REQUEST_BYTES:,} are allowed")
    return bytes(body)


def read_images(content_type: str, body: bytes, preprocessing: Preprocessing) -> Pixels:
    """Return the images of a request, uint8 N x S x S x 3. Raises `Refused`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return preprocessing.file(body)[None]
    if kind == "application/x-npy":
        array = _array(body)
        return preprocessing.read([array] if array.ndim == _ONE_IMAGE else list(array))
    if kind == "application/json":
        return preprocessing.read(_values(body))
    raise Refused(
        _UNSUPPORTED, f"content-type {kind or 'missing'}: send image/jpeg, application/x-npy or application/json"
    )


def _array(body: bytes) -> Pixels:
    """Return the array that `numpy.save` wrote. Check its header before memory is allocated."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except ValueError as error:
        raise Refused(MALFORMED, f"not an array as numpy.save writes it: {str(error).splitlines()[0]}") from None
    content = body[file.tell() :]
    if dtype != np.uint8 or fortran_order or len(shape) not in (_ONE_IMAGE, _BATCH):
        raise Refused(NOT_AN_IMAGE, f"an array {dtype} {shape}: send uint8 HxWx3 or NxHxWx3 in C order")
    if math.prod(shape) != len(content):
        raise Refused(MALFORMED, f"an array {shape} has {math.prod(shape):,} values, {len(content):,} were sent")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _values(body: bytes) -> list[object]:
    """Return the images of `{"instances": [IMAGE, …]}` or `{"inputs": [IMAGE, …]}`, each bare or `{"image": IMAGE}`."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refused(MALFORMED, f"not JSON: {error}") from None
    except RecursionError:
        raise Refused(MALFORMED, "the JSON is nested too deeply") from None
    found = [request[form] for form in _FORMS if form in request] if isinstance(request, dict) else []
    values = found[0] if len(found) == 1 else None
    if isinstance(values, dict):
        values = values.get(COLUMN)
        values = [values] if isinstance(values, str) else values
    if not isinstance(values, list):
        raise Refused(MALFORMED, 'send {"instances": [{"image": BASE64_OR_ARRAY}, …]}')
    return [_bare(value) for value in values]


def _bare(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if COLUMN not in value:
        raise Refused(MALFORMED, f'an instance has no "{COLUMN}", but {", ".join(map(repr, value)) or "nothing"}')
    return value[COLUMN]
