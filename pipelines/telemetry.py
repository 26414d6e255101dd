"""What a worker records of its data, and what is told of it: which stage the run waits for, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from infra.records import Record
from pipelines.data.stages import STAGES, DataTimes

_RATE, _WORST = "train/images_per_second", "train/data_wait_share"
_RETRIES = "data/retries"
_WORTH_TELLING = 0.03  # share of the training time
_SHORT = 0.005  # of the progress line, which has no room for what is rounded away


def data_metrics(times: DataTimes, seconds: float) -> dict[str, float]:
    """Rate, waiting and cost of the data over `seconds` of training; every rank calls it with its own times.

    Returns:
        train/images_per_second over all ranks; train/data_wait_share of the rank that waited most; data/wait_share, the
        mean over ranks, and its parts data/{stage}_share; data/{stage}_share_max of the rank that has most; what data
        tasks spent on 1,000 images, data/read_seconds_per_1k and data/decode_seconds_per_1k; and data/retries, the
        requests to the storage that they repeated.
    """
    import torch

    from resnet_core.collective import max_over_ranks_, sum_over_ranks_

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
    """For the progress line: `3% waiting for data (decode)`."""
    if _WORST not in metrics:
        return ""
    share = metrics[_WORST]
    stage = max(STAGES, key=lambda stage: metrics.get(f"data/{stage}_share", 0.0))
    return f"{share:.0%} waiting for data" + (f" ({stage})" if share >= _SHORT else "")


def retries(records: Iterable[Record]) -> int:
    """How many requests to the storage data tasks repeated in the whole run."""
    return round(sum(record.metrics.get(_RETRIES, 0.0) for record in records))


def data_limit(records: Iterable[Record], global_batch_size: int) -> str:
    """One line for the end of a run: which stage held it up, by how much, and what to change; "" if none did."""
    totals, seconds = _over_run(records, global_batch_size)
    if not seconds or (worst := totals[_WORST] / seconds) < _WORTH_TELLING:
        return ""
    stage = max(STAGES, key=lambda stage: totals[f"data/{stage}_share"])
    rate = totals["images"] / seconds
    wanted = rate / (1 - min(worst, 0.99))
    per_image = (totals["read_s"] + totals["decode_s"]) / totals["images"]  # seconds of a data task
    more = max(1, math.ceil((wanted - rate) * per_image))
    advice = {
        "read": "keep shards on the nodes (data.cache_dir) or nearer to them, or add CPUs, since tasks read side by "
        "side (docs/ingest.md)",
        "decode": f"add {more} CPU{'s' if more > 1 else ''} for data tasks, or store smaller pictures or raw pixels "
        "(docs/stored-forms.md)",
        "transfer": "give Ray's object store more memory, and data tasks CPUs on the workers' own nodes "
        "(docs/ingest.md)",
        "device": 'decode on the host instead: data.decode_on = "host" (docs/ingest.md)',
        "collate": "give each worker a CPU of its own for this: run.cpus_per_worker (docs/ingest.md)",
    }[stage]
    busy = f" with data tasks busy on {rate * per_image:.1f} CPUs" if stage in ("read", "decode") else ""
    return (
        f"{worst:.0%} of the training time went by waiting for data, most of it for {stage}: the workers had "
        f"{rate:,.0f} images/s{busy}, and ask for {wanted:,.0f}; {advice}"
    )


def _over_run(records: Iterable[Record], global_batch_size: int) -> tuple[dict[str, float], float]:
    """Shares times seconds, images and task seconds added up over what was recorded, and the seconds of training."""
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
