"""The sections of a recipe that are the pipelines' own, `data` and `run`; the core's are in `resnet_core.config`."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Literal, get_args

from infra.gate import MARGIN
from pipelines.data.cache import CacheConfig
from pipelines.data.decode import CropConfig
from pipelines.data.undecoded import DecodeOn
from resnet_core.config import Location
from resnet_core.reaction import HeldOut

Source = str
"""A path or URI, or the word for images that a package brings along."""
NodeFolder = str
"""A folder on a node's own disk."""


def _require(condition: bool, key: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{key} {what}, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(CropConfig):
    """Which data set, and how a sample becomes an input; the crop's fields are `CropConfig`'s."""

    uri: Location = ""
    """Folder or s3://bucket/prefix that holds manifest.json."""
    source: Source = ""
    """Source to prepare the data set from if there is none at `uri` yet; "" = never."""
    train_split: str = "train"
    """Split that is trained on."""
    eval_split: str = "validation"
    """Split that is scored during the run and chooses the best checkpoint. A data set without a validation split is
    scored on `test_split` instead, and the run says so."""
    test_split: str = "test"
    """Split that is scored once, at the end, with the best checkpoint; the gate compares models on it."""
    task_mb: int = 32
    """Decoded megabytes that one data task yields: large enough to hide a task's cost, small enough to stream."""
    decode_on: DecodeOn = "host"
    """Where training images are decoded and cropped: in data tasks, or on each worker's device (docs/ingest.md)."""
    max_bad_samples: int = 0
    """Samples of the whole run that may be unreadable, oversized, undecodable or mislabelled: they are left out, named
    in the run's quarantine.parquet (docs/bad-data.md). One more stops the run; 0 = the first does."""
    cache_dir: NodeFolder = ""
    """Folder on each node's own disk that keeps what data tasks have read of shards; "" = no cache."""
    cache_gb: float = 50.0
    """Size limit of the cache, 10^9 bytes; what was used longest ago makes room."""
    device_cache: bool = False
    """Keep the whole training split on every worker's device; raw pixels only, and no data tasks at all."""
    ordered: bool = False
    """Each step takes the next rows of the plan, whatever the number of workers and restarts (docs/plan.md)."""

    def __post_init__(self) -> None:
        CropConfig.__post_init__(self)
        _require(bool(self.uri), "data.uri", "must name a folder or s3://bucket/prefix", self.uri)
        _require(self.task_mb >= 1, "data.task_mb", "must be at least 1", self.task_mb)
        _require(self.max_bad_samples >= 0, "data.max_bad_samples", "must be at least 0", self.max_bad_samples)
        _require(0 < self.cache_gb < math.inf, "data.cache_gb", "must be above 0", self.cache_gb)
        _require(self.decode_on in get_args(DecodeOn), "data.decode_on", 'must be "host" or "device"', self.decode_on)
        host = self.decode_on == "host"
        _require(host or not self.policy, "data.policy", 'must be "" where data.decode_on = "device"', self.policy)
        _require(not (host and self.device_cache), "data.device_cache", 'needs data.decode_on = "device"', True)

    @property
    def held_out(self) -> HeldOut:
        """Prefix of the metrics of `eval_split`."""
        return "test" if self.eval_split == self.test_split else "validation"

    @property
    def cache(self) -> CacheConfig | None:
        """Where nodes keep what they have read, if they do."""
        return CacheConfig(folder=self.cache_dir, cap_bytes=round(self.cache_gb * 1e9)) if self.cache_dir else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where and on what the run happens. Nothing here but `seed` changes the result."""

    name: str = ""
    """Folder of the run under `home` and name of the MLflow run; "" = recipe's name and digest."""
    home: Location = "runs"
    """Folder or s3://bucket/prefix for checkpoints and the run's state."""
    experiment: str = "resnet-ray"
    """MLflow experiment."""
    register_as: str = ""
    """Registered model that the best checkpoint becomes a version of; "" = do not register."""
    gate_margin: float = MARGIN
    """Loss of accuracy, 0 to 1, that a challenger's test images must rule out at 95 % confidence before it becomes
    champion (docs/decisions/0016-the-gate.md); 1 = always champion."""
    seed: int = 0
    """Seed of everything random: weights, order, crops, mixing."""
    num_workers: int | tuple[int, int] = 1
    """Training processes; 0 = in this process (Ray's local mode). [min, max] = as many as there is room for."""
    cpus_per_worker: int | Literal["auto"] = "auto"
    """CPUs that each worker holds, which Ray gives no data task; auto = 1 for a worker on a CPU; for one on a GPU 4, or
    half of the CPUs that its node has for each GPU."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Give each worker one GPU; auto = where the cluster has GPUs, or may get them. A cluster with fewer GPUs than
    num_workers gets as many workers as it has GPUs (docs/decisions/0031-one-gpu-per-worker.md)."""
    max_failures: int = 3
    """Restarts of the workers inside one command; after more, run the command again."""
    log_every_steps: int = 50
    """Steps between two points of loss and speed."""
    eval_every_epochs: int = 1
    """Epochs between two evaluations."""
    eval_at: tuple[float, ...] = ()
    """Times of evaluations, in schedule.unit, in place of `eval_every_epochs`; the end always has one."""
    checkpoint_every_steps: int = 0
    """Steps between two checkpoints besides those at evaluations; 0 = only at evaluations."""
    keep_best: int = 1
    """Checkpoints kept for their accuracy, besides the newest two."""
    relative_to: str = ""
    """Set by the command: the folder that a relative model.init_from was given from. The run's name does not change
    when that folder is moved."""

    @property
    def workers(self) -> tuple[int, int]:
        """Least and most workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    def __post_init__(self) -> None:
        least, most = self.workers
        elastic = isinstance(self.num_workers, tuple)
        _require(
            least >= elastic and most >= least, "run.num_workers", "must be 0 or more, or [min, max]", self.num_workers
        )
        _require(not (set(self.name) & set("/\\ ")), "run.name", "must not contain slashes or spaces", self.name)
        _require(self.name not in (".", "..") and self.name.isprintable(), "run.name", "must name a folder", self.name)
        _require(0 < self.gate_margin <= 1, "run.gate_margin", "must be above 0 and at most 1", self.gate_margin)
        rises = all(low < high for low, high in pairwise((0.0, *self.eval_at, math.inf)))
        _require(rises, "run.eval_at", "must be positive and strictly increasing", self.eval_at)
        _require(self.use_gpu in ("auto", True, False), "run.use_gpu", 'must be "auto", true or false', self.use_gpu)
        cpus = self.cpus_per_worker
        held = cpus >= 1 if isinstance(cpus, int) else cpus == "auto"
        _require(held, "run.cpus_per_worker", 'must be "auto" or at least 1', cpus)
        for field, least in _RUN_MINIMA.items():
            _require(getattr(self, field) >= least, f"run.{field}", f"must be at least {least}", getattr(self, field))


_RUN_MINIMA = {
    "seed": 0,
    "max_failures": 0,
    "log_every_steps": 1,
    "eval_every_epochs": 1,
    "checkpoint_every_steps": 0,
    "keep_best": 1,
}
