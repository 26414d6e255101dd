"""torch.utils.data.DataLoader. Variants: tensor (decode_jpeg, v2 on uint8), pil (ImageFolder in its usual form)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import read_file

from benchmarks.peers.measure import CROP, EPOCHS, RATIO, SCALE, Job, forever, run
from benchmarks.peers.pixels import view


class Files(Dataset[tuple[Tensor, int]]):
    """Data set of files that torchvision's fastest path decodes."""

    def __init__(self, job: Job) -> None:
        self._files = [(str(file), label) for file, label in job.files()]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self._files[index]
        return view(read_file(file)), label


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    dataset = Files(job) if job.variant == "tensor" else _image_folder(job)
    return counted(dataset_loader(ConcatDataset([dataset] * EPOCHS), job, shuffle=True))


def dataset_loader(dataset: Any, job: Job, *, shuffle: bool = False) -> DataLoader[Any]:
    """Return a DataLoader: in this process for one worker, otherwise with as many persistent processes."""
    processes = job.workers if job.workers > 1 else 0
    return DataLoader(
        dataset,
        batch_size=job.batch,
        shuffle=shuffle or None,
        num_workers=processes,
        persistent_workers=processes > 0,
        drop_last=True,
    )


def counted(loader: Any) -> Iterator[int]:
    """Yield the number of images of each batch (images, labels) of a loader, epoch after epoch."""
    return forever(lambda: (len(images) for images, _ in loader))


def _image_folder(job: Job) -> ImageFolder:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP, scale=SCALE, ratio=RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    return ImageFolder(str(job.photographs), transform)


if __name__ == "__main__":
    run(batches)
