"""MosaicML Streaming: MDS shards with the JPEG bytes, torchvision's fastest decoder, torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from streaming import MDSWriter, Stream, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from benchmarks.peers.dataloader import counted, dataset_loader
from benchmarks.peers.measure import EPOCHS, Job, run
from benchmarks.peers.pixels import view


class Views(StreamingDataset):
    """Data set of MDS shards that yields cropped tensors."""

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
        record = super().__getitem__(index)
        return view(record["image"]), record["label"]


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    clean_stale_shared_memory()
    folder = job.scratch / "mds"
    if not (folder / "index.json").exists():
        with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}, exist_ok=True) as writer:
            for file, label in job.files():
                writer.write({"image": file.read_bytes(), "label": label})
    streams = [Stream(local=str(folder), repeat=EPOCHS)]
    dataset = Views(streams=streams, shuffle=True, shuffle_algo="py1e", batch_size=job.batch)
    return counted(dataset_loader(dataset, job))


if __name__ == "__main__":
    run(batches)
