"""CPU, memory, network and GPU use of a node, sampled by its first worker, as MLflow's UI groups them (`system/…`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

from infra.records import Record

_EVERY_S = 10.0
_MEGABYTE = 1e6


class Sampler:
    """Samples in a thread until stopped. Its step is the second of the Unix clock: it grows across restarts."""

    def __init__(self, node_rank: int, send: Callable[[Record], None]) -> None:
        self._prefix = "system/" if node_rank == 0 else f"system/node-{node_rank}/"
        self._send = send
        self._stopped = threading.Event()
        self._gpus = _gpu_handles()
        self._network = psutil.net_io_counters()
        threading.Thread(target=self._run, name="system-metrics", daemon=True).start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stopped.set()

    def _run(self) -> None:
        psutil.cpu_percent()  # measures since the call before: the first answer means nothing
        while not self._stopped.wait(_EVERY_S):
            metrics = {f"{self._prefix}{name}": value for name, value in self._sample().items()}
            self._send(Record(step=int(time.time()), time_ms=time.time_ns() // 1_000_000, metrics=metrics))

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
    """NVML handles of the node's GPUs; none where there is no driver."""
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
