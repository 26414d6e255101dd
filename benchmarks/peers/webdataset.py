"""WebDataset: tar files, torchvision's fastest decoder, a shuffle buffer of 1,000, WebLoader."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import webdataset as wds

from benchmarks.peers.dataloader import counted
from benchmarks.peers.measure import EPOCHS, Job, run
from benchmarks.peers.pixels import view

_SHARD_FILES = 100


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    shards = [str(path) for path in _shards(job)] * EPOCHS
    dataset = wds.WebDataset(shards, shardshuffle=len(shards), nodesplitter=wds.split_by_node)
    dataset = dataset.shuffle(1000).to_tuple("jpg", "cls").map_tuple(view, int)
    processes = job.workers if job.workers > 1 else 0
    batched = dataset.batched(job.batch, partial=False)
    return counted(wds.WebLoader(batched, batch_size=None, num_workers=processes, persistent_workers=processes > 0))


def _shards(job: Job) -> list[str]:
    if not (job.scratch / "done").exists():
        with wds.ShardWriter(str(job.scratch / "%05d.tar"), maxcount=_SHARD_FILES, verbose=0) as writer:
            for number, (file, label) in enumerate(job.files()):
                writer.write({"__key__": f"{number:08d}", "jpg": file.read_bytes(), "cls": str(label)})
        (job.scratch / "done").touch()
    return sorted(map(str, job.scratch.glob("*.tar")))


if __name__ == "__main__":
    run(batches)
