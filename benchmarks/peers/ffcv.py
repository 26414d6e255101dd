"""FFCV: its file of JPEG or raw images, its decoder of the crop's region, its compiled flips.

Variants are stored forms, with the same images as ours: jpeg-500 (full size, encoded again at quality 90), jpeg-256
(shorter side 256, quality 90), raw-256 (central 256 x 256 of that).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.peers.measure import CROP, EPOCHS, RATIO, SCALE, Job, forever, run

_QUALITY, _SHORT = 90, 256


class Pictures:
    """Photographs in the form of FFCV's writer: (RGB array, label)."""

    def __init__(self, job: Job) -> None:
        self._files, self._form = job.files(), job.variant

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file, label = self._files[index]
        image = Image.open(file).convert("RGB")
        if self._form != "jpeg-500":
            width, height = (side * _SHORT // min(image.size) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self._form == "raw-256":
            left, top = (image.width - _SHORT) // 2, (image.height - _SHORT) // 2
            image = image.crop((left, top, left + _SHORT, top + _SHORT))
        return np.array(image), label


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    file = job.scratch / "photographs.beton"
    if not file.exists():
        image = RGBImageField(write_mode="raw" if job.variant == "raw-256" else "jpg", jpeg_quality=_QUALITY)
        writer = DatasetWriter(str(file), {"image": image, "label": IntField()}, num_workers=1)
        writer.from_indexed_dataset(Pictures(job))
    decoder = RandomResizedCropRGBImageDecoder((CROP, CROP), scale=SCALE, ratio=RATIO)
    loader = Loader(
        str(file),
        batch_size=job.batch,
        num_workers=job.workers,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(len(job.files())), EPOCHS),
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [decoder, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return forever(lambda: (len(images) for images, _ in loader))


if __name__ == "__main__":
    run(batches)
