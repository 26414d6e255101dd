"""Convert requests to pixels for the model, and the model's probabilities to responses. Imports no torch.

Each registered model contains this module and its imports (`pipelines.registry.bundled_code`). So MLflow's server and
`serve.py` give the model the same pixels as evaluation, and refuse the same requests with the same words.

Shapes: N images, S side of the model's input in pixels, K classes.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, eval_view
from pipelines.data.images.pillow import DecodeError, OversizedImage
from pipelines.data.images.stored import Stored, image_file

MAX_REQUEST_BYTES = 32 * 2**20
"""Limit for a request, and for all images in it."""
MAX_IMAGES = 1024
"""Limit for the images of a request."""
MALFORMED, TOO_LARGE, NOT_AN_IMAGE = 400, 413, 422
"""HTTP statuses of refused requests."""
_BYTE = range(256)

Pixels = npt.NDArray[np.uint8]


class Refused(Exception):
    """Error for a request that is refused: its HTTP status, and the reason in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Input and output of a model: requests to pixels, probabilities to responses."""

    crop: CropConfig
    class_names: tuple[str, ...]
    """Names of the K classes, each name once."""
    form: Stored = IMAGE_FILE
    """Form of image files, which says which pixels they have."""
    thresholds: tuple[float, ...] = ()
    """Probability from which on a multi-label model answers with a class, [K]; empty = one class per image."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Preprocessing:
        """Build it from the metadata of a registered model."""
        names = _distinct(metadata["class_names"])
        return cls(
            crop=CropConfig.of_shown(metadata),
            class_names=names,
            form=image_file(metadata),
            thresholds=tuple(metadata.get("thresholds", ())),
        )

    def read(self, values: Sequence[object]) -> Pixels:
        """Return the images of a request, uint8 N x S x S x 3.

        Args:
            values: for each image the bytes of a JPEG, PNG, … file, the same as base64 text, or an array.

        Raises:
            Refused: an image does not decode, is too large or has the wrong shape; or there are none or too many.
        """
        found = list(_flat(values))
        if not 1 <= len(found) <= MAX_IMAGES:
            raise Refused(MALFORMED, f"a request holds 1 to {MAX_IMAGES:,} images, this one {len(found):,}")
        sizes = (len(value) for value in found if isinstance(value, str | bytes))
        if sum(sizes) > MAX_REQUEST_BYTES * 4 // 3:
            raise Refused(TOO_LARGE, f"the images have more than {MAX_REQUEST_BYTES:,} bytes")
        return np.stack([self._image(value, f"image {place}") for place, value in enumerate(found)])

    def file(self, data: bytes, name: str = "the image") -> Pixels:
        """Decode an image file to the model's input, uint8 S x S x 3. Raises `Refused`."""
        try:
            return eval_view(data, self.form, self.crop)
        except OversizedImage as error:
            raise Refused(TOO_LARGE, f"{name}: {error}") from None
        except DecodeError as error:
            raise Refused(NOT_AN_IMAGE, f"{name}: {error}") from None

    def array(self, values: object, name: str = "the array") -> Pixels:
        """Convert nested lists or an array to the model's input, uint8 S x S x 3. Raises `Refused`."""
        try:
            array = np.asarray(values)
        except ValueError:  # rows of different lengths
            array = np.array(None)
        side = self.crop.image_size
        if array.shape != (side, side, 3):
            shape = "x".join(map(str, array.shape)) or "no regular shape"
            raise Refused(NOT_AN_IMAGE, f"{name}: {shape}, this model takes {side}x{side}x3")
        if array.dtype != np.uint8:
            whole = np.issubdtype(array.dtype, np.integer)
            if not whole or array.min() < _BYTE[0] or array.max() > _BYTE[-1]:
                raise Refused(NOT_AN_IMAGE, f"{name}: its values are not whole numbers from 0 to 255")
        return array.astype(np.uint8)

    def answers(self, probabilities_NK: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return, for each image, the most probable class and the probability of every class by name.

        A multi-label model answers with every class that reaches its threshold instead, the most probable first.
        """
        if self.thresholds:
            return [self._labels(row) for row in probabilities_NK.tolist()]
        best = probabilities_NK.argmax(axis=1).tolist()
        return [
            {
                "class": self.class_names[place],
                "probability": row[place],
                "probabilities": dict(zip(self.class_names, row, strict=True)),
            }
            for place, row in zip(best, probabilities_NK.tolist(), strict=True)
        ]

    def _labels(self, row: Sequence[float]) -> dict[str, Any]:
        shown = sorted(zip(row, self.class_names, self.thresholds, strict=True), reverse=True)
        found = [{"class": name, "probability": chance} for chance, name, threshold in shown if chance >= threshold]
        return {"classes": found, "probabilities": dict(zip(self.class_names, row, strict=True))}

    def _image(self, value: object, name: str) -> Pixels:
        if isinstance(value, str):
            return self.file(_decoded(value, name), name)
        if isinstance(value, bytes):
            return self.file(value, name)
        if isinstance(value, list | np.ndarray):
            return self.array(value, name)
        raise Refused(MALFORMED, f"{name}: neither base64 text nor an array, but {type(value).__name__}")


def _flat(values: Sequence[object]) -> Iterator[object]:
    """Yield the values, and unpack lists of texts: MLflow makes one value of `{"inputs": {"image": [base64, …]}}`."""
    for value in values:
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            yield from value
        else:
            yield value


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(MALFORMED, f"{name}: not base64") from None


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return unique class names. Classes with the same name get their numbers, as ImageNet's two cranes do."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names))
