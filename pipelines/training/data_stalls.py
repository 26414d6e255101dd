"""Data metrics of a worker, and lines about them: which stage the run waits for, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from infra.tracking.metric_point import MetricPoint
from pipelines.data.tasks.timing import STAGES, DataTimes

_RATE, _WORST = "train/images_per_second", "train/data_wait_share"
_RETRIES = "data/retries"
_MIN_REPORTED = 0.03  # fraction of the training time
_MIN_SHOWN = 0.005  # a smaller fraction is 0% in the progress line, so no stage is named


def data_metrics(times: DataTimes, seconds: float) -> dict[str, float]:
    """Return rate, waits and cost of the data over `seconds` of training. Every rank calls it with its own times.

    Returns:
        train/images_per_second: over all ranks.
        train/data_wait_share: fraction of the time that the slowest rank waited for data.
        data/wait_share: mean over ranks; data/{stage}_share are its parts.
        data/{stage}_share_max: of the rank that has most.
        data/read_seconds_per_1k, data/decode_seconds_per_1k: time of data tasks for 1,000 images.
        data/retries: requests to the storage that data tasks repeated.
    """
    import torch

    from resnet_core.distributed import max_over_ranks_, sum_over_ranks_

    shares = [wait / seconds for wait in times.waits().values()]
    own = [1.0, times.images, times.retries, times.read_s, times.decode_s, *shares]
    summed = sum_over_ranks_(torch.tensor(own, dtype=torch.float64)).tolist()
    largest = max_over_ranks_(torch.tensor([*shares, sum(shares)], dtype=torch.float64)).tolist()
    ranks, images, retries, read_s, decode_s, *waits = summed
    metrics = {_RATE: images / seconds, _WORST: min(1.0, largest[-1]), "data/wait_share": sum(waits) / ranks}
    for stage, mean, most in zip(STAGES, waits, largest, strict=False):
        metrics |= {f"data/{stage}_share": mean / ranks, f"data/{stage}_share_max": most}
    thousands = max(images, 1) / 1000
    return metrics | {
        _RETRIES: retries,
        "data/read_seconds_per_1k": read_s / thousands,
        "data/decode_seconds_per_1k": decode_s / thousands,
    }


def waiting(metrics: Mapping[str, float]) -> str:
    """Return a part of the progress line, such as `3% waiting for data (decode)`."""
    if _WORST not in metrics:
        return ""
    share = metrics[_WORST]
    stage = max(STAGES, key=lambda stage: metrics.get(f"data/{stage}_share", 0.0))
    return f"{share:.0%} waiting for data" + (f" ({stage})" if share >= _MIN_SHOWN else "")


def retries(records: Iterable[MetricPoint]) -> int:
    """Return how many requests to the storage the data tasks of the whole run repeated."""
    return round(sum(record.metrics.get(_RETRIES, 0.0) for record in records))


def data_limit(records: Iterable[MetricPoint], global_batch_size: int) -> str:
    """Return a line for the end of a run: which stage slowed it down, how much, and what to change; "" if none."""
    totals, seconds = _over_run(records, global_batch_size)
    if not seconds or (worst := totals[_WORST] / seconds) < _MIN_REPORTED:
        return ""
    stage = max(STAGES, key=lambda stage: totals[f"data/{stage}_share"])
    rate = totals["images"] / seconds
    wanted = rate / (1 - min(worst, 0.99))
    per_image = (totals["read_s"] + totals["decode_s"]) / totals["images"]  # seconds of a data task
    more = max(1, math.ceil((wanted - rate) * per_image))
    advice = {
        "read": "cache shards on the nodes (data.cache_dir), store them nearer, or add CPUs for more tasks that read "
        "in parallel (docs/ingest.md)",
        "decode": f"add {more} CPU{'s' if more > 1 else ''} for data tasks, or store smaller images or raw pixels "
        "(docs/stored-forms.md)",
        "transfer": "give Ray's object store more memory, and data tasks more CPUs on the workers' own nodes "
        "(docs/ingest.md)",
        "device": 'decode on the host instead: data.decode_on = "host" (docs/ingest.md)',
        "collate": "give each worker one more CPU: run.cpus_per_worker (docs/ingest.md)",
    }[stage]
    busy = f" with data tasks busy on {rate * per_image:.1f} CPUs" if stage in ("read", "decode") else ""
    return (
        f"{worst:.0%} of the training time was spent waiting for data, mostly for {stage}: the workers got "
        f"{rate:,.0f} images/s{busy}, and could train on {wanted:,.0f}; {advice}"
    )


def _over_run(records: Iterable[MetricPoint], global_batch_size: int) -> tuple[dict[str, float], float]:
    """Return sums over the records (fractions times seconds, images, seconds of tasks), and the seconds of training."""
    totals = dict.fromkeys((_WORST, "images", "read_s", "decode_s", *(f"data/{stage}_share" for stage in STAGES)), 0.0)
    seconds, before = 0.0, 0
    for record in records:
        metrics = record.metrics
        if not metrics.get(_RATE) or "data/wait_share" not in metrics:
            continue
        images, before = (record.step - before) * global_batch_size, record.step
        took = images / metrics[_RATE]
        seconds += took
        totals["images"] += images
        totals["read_s"] += metrics["data/read_seconds_per_1k"] * images / 1000
        totals["decode_s"] += metrics["data/decode_seconds_per_1k"] * images / 1000
        for key in (_WORST, *(f"data/{stage}_share" for stage in STAGES)):
            totals[key] += metrics[key] * took
    return totals, seconds
