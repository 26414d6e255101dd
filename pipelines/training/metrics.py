"""Prometheus metrics of a training run: gauges and counters of each rank, which Ray exports on every node.

MLflow has the history of a run; these metrics compare several runs and machines (docs/operations.md). The dashboards in
infra/dashboards/ use the same names, with the prefix `ray_` that Ray adds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
from ray.util.metrics import Counter, Gauge, Metric

from infra.tracking.metric_point import MetricPoint
from pipelines.data.tasks.timing import DataTimes
from pipelines.training.messages import MetricMessage
from resnet_core.plateau import held_out

_RUN, _RANK = ("run",), ("run", "rank")
_GAUGES = {
    "train/loss": ("resnet_ray_train_loss", "Mean loss since the last point of the curve."),
    "lr": ("resnet_ray_train_learning_rate", "Learning rate of the last step."),
    "train/images_per_second": ("resnet_ray_train_images_per_second", "Images trained on per second, all ranks."),
    "checkpoint/seconds": ("resnet_ray_checkpoint_seconds", "Time to write the last checkpoint."),
    "held_out/accuracy": ("resnet_ray_held_out_accuracy", "Top-1 accuracy of the last evaluation, 0 to 1."),
}


class RunMetrics:
    """Metrics of one rank."""

    def __init__(self, run: str, rank: int, world_size: int) -> None:
        self._step = Gauge("resnet_ray_train_step", "Steps done.", _RUN)
        self._workers = Gauge("resnet_ray_train_workers", "Ranks that train.", _RUN)
        self._curves = {key: Gauge(name, text, _RUN) for key, (name, text) in _GAUGES.items()}
        self._images = Counter("resnet_ray_train_images", "Images trained on.", _RANK)
        self._waited = Counter("resnet_ray_data_wait_seconds", "Time spent waiting for data.", (*_RANK, "stage"))
        self._read = Counter("resnet_ray_data_read_seconds", "Time of data tasks for reading and verifying.", _RANK)
        self._decode = Counter("resnet_ray_data_decode_seconds", "Time of data tasks for decoding.", _RANK)
        self._retries = Counter("resnet_ray_storage_retries", "Requests to the storage that were repeated.", _RANK)
        metrics: list[Metric] = [self._step, self._workers, *self._curves.values()]
        for metric in metrics:
            metric.set_default_tags({"run": run})
        for counter in (self._images, self._waited, self._read, self._decode, self._retries):
            counter.set_default_tags({"run": run, "rank": str(rank)})
        self._rank, self._world_size = rank, world_size
        self._latest: dict[str, float] = {}

    def point(self, metrics: Mapping[str, float]) -> None:
        """Keep a point of the curves. All ranks have it; rank 0 exports it."""
        self._latest.update(metrics)
        accuracy = held_out(metrics, "accuracy")
        if accuracy is not None:
            self._latest["held_out/accuracy"] = accuracy

    def alive(self, step: int) -> None:
        """Set the gauges. Ray drops a gauge that is not set, so the worker calls this about every second."""
        if self._rank != 0:
            return
        self._step.set(step)
        self._workers.set(self._world_size)
        for key, gauge in self._curves.items():
            if key in self._latest:
                gauge.set(self._latest[key])

    def data(self, times: DataTimes) -> None:
        """Add what this rank measured of its data since the last call."""
        for counter, amount in (
            (self._images, times.images),
            (self._read, times.read_s),
            (self._decode, times.decode_s),
            (self._retries, times.retries),
        ):
            if amount > 0:  # Ray's counters refuse 0
                counter.inc(amount)
        for stage, seconds in times.waits().items():
            if seconds > 0:
                self._waited.inc(seconds, {"stage": stage})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecorder:
    """Keeps the history for the checkpoints, and sends each point to the driver."""

    history: list[MetricPoint]
    shown: RunMetrics
    tell: Callable[[MetricMessage], None]
    """Sends a message to the driver, from rank 0 only."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        record = MetricPoint(step=step, time_ms=time.time_ns() // 1_000_000, metrics=dict(metrics))
        self.history.append(record)
        self.shown.point(metrics)
        self.tell(MetricMessage(record=record))


_EVERY_S = 10.0
_MEGABYTE = 1e6


class Sampler:
    """Thread that samples system metrics. A point's step is Unix time in seconds, so it grows across restarts."""

    def __init__(self, node_rank: int, send: Callable[[MetricPoint], None]) -> None:
        self._prefix = "system/" if node_rank == 0 else f"system/node-{node_rank}/"
        self._send = send
        self._stopped = threading.Event()
        self._gpus = _gpu_handles()
        self._network = psutil.net_io_counters()
        threading.Thread(target=self._run, name="system-metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _run(self) -> None:
        psutil.cpu_percent()  # measures since the last call, so the first value means nothing
        while not self._stopped.wait(_EVERY_S):
            metrics = {f"{self._prefix}{name}": value for name, value in self._sample().items()}
            self._send(MetricPoint(step=int(time.time()), time_ms=time.time_ns() // 1_000_000, metrics=metrics))

    def _sample(self) -> dict[str, float]:
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        sample = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / _MEGABYTE,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / _MEGABYTE,
        }
        for index, handle in enumerate(self._gpus):
            sample.update(_gpu_sample(index, handle))
        return sample


def _gpu_handles() -> list[object]:
    """Return NVML handles of the node's GPUs; none if there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]


def _gpu_sample(index: int, handle: object) -> dict[str, float]:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        f"gpu_{index}_utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        f"gpu_{index}_memory_usage_megabytes": memory.used / _MEGABYTE,
    }
