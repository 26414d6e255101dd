"""NVIDIA DALI on the CPU, which decodes only the crop's region. Variants: antialias, plain (without antialiasing)."""

from __future__ import annotations

from collections.abc import Iterator

from nvidia.dali import fn, pipeline_def, types

from benchmarks.peers.measure import CROP, RATIO, SCALE, Job, run


@pipeline_def
def views(files: list[str], labels: list[int], antialias: bool) -> tuple[object, object]:
    """Build the pipeline: uint8 B x 224 x 224 x 3 and labels."""
    records, label = fn.readers.file(files=files, labels=labels, random_shuffle=True, initial_fill=1000)
    images = fn.decoders.image_random_crop(
        records, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO), num_attempts=10
    )
    images = fn.resize(images, size=(CROP, CROP), interp_type=types.INTERP_LINEAR, antialias=antialias)
    return fn.flip(images, horizontal=fn.random.coin_flip()), label


def batches(job: Job) -> Iterator[int]:
    files = job.files()
    pipeline = views(
        files=[str(file) for file, _ in files],
        labels=[label for _, label in files],
        antialias=job.variant == "antialias",
        batch_size=job.batch,
        num_threads=job.workers,
        device_id=None,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        yield len(images.as_array())


if __name__ == "__main__":
    run(batches)
