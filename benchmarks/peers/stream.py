"""Our loader as in a run: Ray tasks, streaming_split, and one actor per worker with its `RankBatches` and the flip.

Variants: local, s3 and s3-50ms, at AWS_ENDPOINT_URL. benchmarks/ingest.py starts the S3 server and the proxy outside
this process tree, so their CPU time is not counted here.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray
import torch

from benchmarks.peers.measure import Job, Measured, arguments, tree_cpu_s, write
from benchmarks.peers.ours import photograph_stream, prepared
from infra.cluster import connect
from pipelines.data.order.ledger import Ledger
from pipelines.training.stream import Stream, build_dataset
from resnet_core.augment import random_flip

_SAMPLE_S = 0.25
_COLD_STEPS = 4  # steps of the first stream, for which no process of data tasks runs yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed(Measured):
    """Result of one measurement, with figures that only a whole pipeline has."""

    median_gap_s: float  # between two batches
    cold_first_batch_s: float  # from the start of the stream, with no process of data tasks running
    warm_first_batch_s: float  # the same for the second stream of the cluster
    object_store_gb: float  # peak use, 10^9 bytes
    spilled_gb: float


class Worker:
    """One rank: takes batches like `pipelines.training.worker`, without training."""

    def __init__(self, rank: int) -> None:
        torch.set_num_threads(1)
        self._generator = torch.Generator().manual_seed(rank)

    def start(self, part: Any, stream: Stream, world_size: int) -> float:
        """Start to read a stream; return the time at which its first batch is ready, Unix seconds."""
        from pipelines.training.batches import RankBatches, Steps

        steps = Steps(
            total_samples=stream.total_samples,
            total_steps=stream.total_samples // stream.step_rows,
            global_batch_size=stream.step_rows,
            world_size=world_size,
            microbatch_size=0,
        )
        blocks = part.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
        self._batches = RankBatches(blocks, steps, torch.device("cpu")).from_step(0)
        self._next()
        return time.time()

    def warm(self, images: int) -> None:
        """Take at least `images` images."""
        while images > 0:
            images -= self._next()

    def measure(self, seconds: float) -> tuple[int, float, list[float]]:
        """Return (images, seconds, list of seconds between batches)."""
        images, gaps = 0, []
        began = last = time.perf_counter()
        while last - began < seconds:
            images += self._next()
            gaps.append(time.perf_counter() - last)
            last += gaps[-1]
        return images, last - began, gaps

    def _next(self) -> int:
        return sum(len(random_flip(batch.images_BHWC, self._generator)) for batch in next(self._batches).microbatches)


class StoreWatch:
    """Samples the use of the object store in a thread."""

    def __init__(self) -> None:
        self.most = self.spilled = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._stop.wait(_SAMPLE_S):
            stats = get_memory_info_reply(state).store_stats
            self.most = max(self.most, stats.object_store_bytes_used)
            self.spilled = stats.spilled_bytes_total

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def started(stream: Stream, workers: list[Any]) -> float:
    """Start a new stream on the workers; return the seconds until every worker has its first batch."""
    began = time.time()
    dataset = build_dataset(stream, 0, Ledger(stream.manifest.splits["train"]), len(workers))
    parts = dataset.streaming_split(len(workers), equal=True)
    first = [worker.start.remote(part, stream, len(workers)) for worker, part in zip(workers, parts, strict=True)]
    return max(ray.get(first)) - began


def measure_stream(job: Job, uri: str) -> Streamed:
    connect(min_cpus=job.workers + 1)
    actor: Any = ray.remote(num_cpus=1)(Worker)
    long = photograph_stream(uri, "", step_rows=job.batch * job.workers)
    short = dataclasses.replace(long, total_samples=_COLD_STEPS * long.step_rows, seed=1)
    workers = [actor.remote(rank) for rank in range(job.workers)]
    cold = started(short, workers)
    # to the end of the stream, so that no task keeps running
    ray.get([worker.warm.remote((_COLD_STEPS - 1) * job.batch) for worker in workers])
    warm = started(long, workers)
    ray.get([worker.warm.remote(max(len(job.files()) // job.workers, job.batch * 4)) for worker in workers])
    watch, cpu = StoreWatch(), tree_cpu_s(os.getpid())
    parts = ray.get([worker.measure.remote(job.seconds) for worker in workers])
    cpu = tree_cpu_s(os.getpid()) - cpu
    watch.end()
    gaps = [gap for _, _, found in parts for gap in found]
    return Streamed(
        images=sum(images for images, _, _ in parts),
        wall_s=max(seconds for _, seconds, _ in parts),
        cpu_s=cpu,
        longest_gap_s=max(gaps),
        median_gap_s=median(gaps),
        cold_first_batch_s=cold,
        warm_first_batch_s=warm,
        object_store_gb=watch.most / 1e9,
        spilled_gb=watch.spilled / 1e9,
    )


def main() -> None:
    job, out = arguments()
    local = str(job.scratch / "data")
    uri = prepared(job.photographs, "original", local if job.variant == "local" else "s3://resnet-ray/photographs")
    write(measure_stream(job, uri), out)


if __name__ == "__main__":
    main()
