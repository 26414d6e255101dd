"""Requests of `benchmarks/serving.py`: real images in every form that a server accepts, and requests to refuse."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from infra.registry.versions import LoadedModel
from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, eval_view
from pipelines.data.images.pillow import open_record
from pipelines.inference.sources import find_images
from tests.pipelines.serving.requests_to_refuse import base64_of, bomb, file_of, npy_of

JSON = "application/json"
KINDS = ("jpeg", "png", "array")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request, and the prediction of each version for its image in this process."""

    body: bytes
    content_type: str
    expected: dict[int, np.ndarray] = field(default_factory=dict)


def asked(models: Sequence[LoadedModel], count: int) -> Iterator[tuple[str, list[Question]]]:
    """Yield requests in each form, one image per request; the images are of the first model's data set."""
    about = models[0].metadata
    images, crop = find_images([about["data_uri"]], about["split"]), CropConfig.of_shown(about)
    stored = images.stored
    assert stored is not None  # a data set
    records = (image.record for part in images.parts for image in images.read(part))
    opened = [open_record(record, stored) for record in itertools.islice(records, count)]
    for kind in KINDS:
        files = [file_of(image, "PNG" if kind == "array" else kind.upper()) for image in opened]
        pixels = [eval_view(file, IMAGE_FILE, crop) for file in files]
        # one by one, as they are sent: the other images of a batch change the last bits
        expected = [{model.version.number: model.predict(each[None])[0] for model in models} for each in pixels]
        if kind == "array":
            values, bodies, form = [each.tolist() for each in pixels], map(npy_of, pixels), "application/x-npy"
        else:
            values, bodies, form = [base64.b64encode(file).decode() for file in files], files, f"image/{kind}"
        for label, each, content_type in ((f"{kind} in JSON", map(in_json, values), JSON), (kind, bodies, form)):
            yield (
                label,
                [
                    Question(body=body, content_type=content_type, expected=answer)
                    for body, answer in zip(each, expected, strict=True)
                ],
            )


def to_refuse(side: int) -> Iterator[tuple[str, Question]]:
    """Yield (what is wrong, request) pairs; `side` is the side of the model's input, pixels."""
    values = {
        "not an image": base64_of(b"hello"),
        "30,000 x 30,000 pixels": base64_of(bomb()),
        "wrong shape": np.zeros((side + 8, side + 8, 3), int).tolist(),
        "50 MB": "A" * 50_000_000,
    }
    for label, value in values.items():
        yield label, Question(body=in_json(value), content_type=JSON)


def in_json(value: object) -> bytes:
    """Return the JSON body of a request with one image."""
    return json.dumps({"instances": [{"image": value}]}).encode()
