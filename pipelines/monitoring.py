"""What a run shows to Prometheus while it trains: gauges and counters of each rank, which Ray exports on every node.

MLflow has the history of a run; this is for watching runs and machines side by side (docs/operations.md). The names,
with the `ray_` that Ray puts before them, are those of infra/dashboards/.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Metric

from pipelines.data.stages import DataTimes
from resnet_core.reaction import held_out

_RUN, _RANK = ("run",), ("run", "rank")
_GAUGES = {
    "train/loss": ("resnet_ray_train_loss", "Mean loss since the last point of the curve."),
    "lr": ("resnet_ray_train_learning_rate", "Learning rate of the last step."),
    "train/images_per_second": ("resnet_ray_train_images_per_second", "Images trained on per second, all ranks."),
    "held_out/accuracy": ("resnet_ray_held_out_accuracy", "Top-1 accuracy of the last evaluation, 0 to 1."),
}


class RunMetrics:
    """Of one rank."""

    def __init__(self, run: str, rank: int, world_size: int) -> None:
        self._step = Gauge("resnet_ray_train_step", "Steps done.", _RUN)
        self._workers = Gauge("resnet_ray_train_workers", "Ranks that train.", _RUN)
        self._curves = {key: Gauge(name, text, _RUN) for key, (name, text) in _GAUGES.items()}
        self._images = Counter("resnet_ray_train_images", "Images trained on.", _RANK)
        self._waited = Counter("resnet_ray_data_wait_seconds", "Waited for data.", (*_RANK, "stage"))
        self._read = Counter("resnet_ray_data_read_seconds", "Spent by data tasks on reading and verifying.", _RANK)
        self._decode = Counter("resnet_ray_data_decode_seconds", "Spent by data tasks on decoding.", _RANK)
        self._retries = Counter("resnet_ray_storage_retries", "Requests to the storage made again.", _RANK)
        metrics: list[Metric] = [self._step, self._workers, *self._curves.values()]
        for metric in metrics:
            metric.set_default_tags({"run": run})
        for counter in (self._images, self._waited, self._read, self._decode, self._retries):
            counter.set_default_tags({"run": run, "rank": str(rank)})
        self._rank, self._world_size = rank, world_size
        self._latest: dict[str, float] = {}

    def point(self, metrics: Mapping[str, float]) -> None:
        """A point of the curves, which all ranks have and rank 0 shows from now on."""
        self._latest.update(metrics)
        accuracy = held_out(metrics, "accuracy")
        if accuracy is not None:
            self._latest["held_out/accuracy"] = accuracy

    def alive(self, step: int) -> None:
        """Ray drops a gauge that nobody sets, so this is called every second or so."""
        if self._rank != 0:
            return
        self._step.set(step)
        self._workers.set(self._world_size)
        for key, gauge in self._curves.items():
            if key in self._latest:
                gauge.set(self._latest[key])

    def data(self, times: DataTimes) -> None:
        """What this rank had of its data since the call before."""
        for counter, amount in (
            (self._images, times.images),
            (self._read, times.read_s),
            (self._decode, times.decode_s),
            (self._retries, times.retries),
        ):
            if amount > 0:  # Ray's counters take nothing else
                counter.inc(amount)
        for stage, seconds in times.waits().items():
            if seconds > 0:
                self._waited.inc(seconds, {"stage": stage})
