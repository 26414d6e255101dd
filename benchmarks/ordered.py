"""Cost of `data.ordered = true`: `python -m benchmarks.ordered PHOTOGRAPHS` (a folder of benchmarks.photographs).

Two workers take the same rows of the same data set through Ray: crops of 224 pixels from original JPEGs, 256 per step
over both workers. They take the rows once in the order of arrival and once in the plan's order, in turns. The result
is images/s from the first block to the last, over all workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray

from benchmarks.peers.ours import photograph_stream, prepared
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import FILLER
from pipelines.training.ordered import opened
from pipelines.training.stream import Stream, build_dataset

WORKERS = 2


def rate(stream: Stream) -> float:
    """Return the images/s over all workers."""
    ledger = Ledger(stream.manifest.splits["train"])
    parts = build_dataset(stream, 0, ledger, WORKERS).streaming_split(WORKERS, equal=True)
    marks: list[tuple[float, int]] = []

    def read(rank: int) -> None:
        for block in opened(parts[rank].iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)):
            marks.append((time.perf_counter(), int((block["id"] != FILLER).sum())))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    marks.sort()
    return sum(rows for _, rows in marks[1:]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="resnet-ray-ordered-") as folder:
        uri = prepared(args.photographs, "original", f"{folder}/data")
        free = photograph_stream(uri, f"{folder}/run", step_rows=256)
        free = dataclasses.replace(free, total_samples=args.images // 256 * 256)
        found: dict[bool, list[float]] = {False: [], True: []}
        for number in range(args.rounds):
            for ordered in (False, True)[:: 1 if number % 2 == 0 else -1]:
                found[ordered].append(rate(dataclasses.replace(free, ordered=ordered)))
                print(f"round {number}, ordered = {ordered}: {found[ordered][-1]:,.0f} images/s", flush=True)
        ratios = [after / before for before, after in zip(found[False], found[True], strict=True)]
        print(
            f"ordered / free: median {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); images/s: "
            f"{median(found[False]):,.0f} free, {median(found[True]):,.0f} in order"
        )


if __name__ == "__main__":
    main()
