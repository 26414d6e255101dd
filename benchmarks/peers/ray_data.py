"""Ray Data as in Ray's release benchmark: read_parquet, one row per call of a map, float CHW, normalized.

The order of transforms, the float images and the default settings are those of ray-project/ray,
release/train_tests/benchmark/image_classification. The scale of the crop is 0.08, as for all loaders here. Workers are
the CPUs that Ray may use, at least two, because one lists files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.peers.measure import CROP, EPOCHS, RATIO, SCALE, Job, forever, run

_FILE_ROWS = 100


def batches(job: Job) -> Iterator[int]:
    files = _parquet(job)
    ray.init(
        address="local",
        num_cpus=max(2, job.workers),
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(files * EPOCHS, columns=["image", "label"]).map(_row_map())
    return forever(lambda: (len(batch["image"]) for batch in dataset.iter_torch_batches(batch_size=job.batch)))


def _row_map() -> Callable[[dict[str, Any]], dict[str, Any]]:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP, scale=SCALE, ratio=RATIO, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        image = pil_to_tensor(Image.open(io.BytesIO(row["image"]))) / 255.0
        return {"image": np.array(transform(image)), "label": row["label"]}

    return decode


def _parquet(job: Job) -> list[str]:
    if not (job.scratch / "done").exists():
        records = [{"image": file.read_bytes(), "label": label} for file, label in job.files()]
        for begin in range(0, len(records), _FILE_ROWS):
            table = pa.Table.from_pylist(records[begin : begin + _FILE_ROWS])
            pq.write_table(table, job.scratch / f"{begin:06d}.parquet", compression="none")
        (job.scratch / "done").touch()
    return sorted(map(str, job.scratch.glob("*.parquet")))


if __name__ == "__main__":
    run(batches)
