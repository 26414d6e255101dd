"""LitData: its optimized chunks with the JPEG bytes, torchvision's fastest decoder, StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata
import torch

from benchmarks.peers.dataloader import counted
from benchmarks.peers.measure import Job, run
from benchmarks.peers.pixels import view

_COPIES = 4  # copies of the photographs in the chunks, which are the loader's epoch


class Views(litdata.StreamingDataset):
    """Data set of LitData's chunks that yields cropped tensors."""

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
        record = super().__getitem__(index)
        return view(record["image"]), record["label"]


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    folder = job.scratch / "chunks"
    if not (folder / "index.json").exists():
        litdata.optimize(
            _record, job.files() * _COPIES, output_dir=str(folder), chunk_bytes="64MB", num_workers=1, mode="overwrite"
        )
    dataset = Views(str(folder), shuffle=True, drop_last=True)
    processes = job.workers if job.workers > 1 else 0
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=job.batch, num_workers=processes, persistent_workers=processes > 0, drop_last=True
    )
    return counted(loader)


def _record(sample: tuple[Path, int]) -> dict[str, Any]:
    file, label = sample
    return {"image": file.read_bytes(), "label": label}


if __name__ == "__main__":
    run(batches)
