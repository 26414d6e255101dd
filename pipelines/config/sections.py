"""Sections `data` and `run` of a recipe, which belong to the pipelines; the core's are in `resnet_core.config`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from infra.registry.gate import FURTHER, MARGIN, Measure
from pipelines.config.crop import CropConfig, DecodeOn
from resnet_core.config import Location
from resnet_core.plateau import HeldOut

Source = str
"""Path or URI, or the word for images that come with a package."""
Sampling = Literal["uniform", "balanced"]
NodeFolder = str
"""Folder on a node's own disk."""


UseGpu = bool | Literal["auto"]
"""Value of `run.use_gpu` in a recipe: "auto" uses GPUs if the cluster has them or may get them."""


def _require(condition: bool, key: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{key} {what}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Folder in which a node caches byte ranges of shards, and its size limit."""

    folder: str  # on the node's own disk; created if it is missing
    cap_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(CropConfig):
    """The data set, and how a sample becomes an input; the fields of the crop are `CropConfig`'s."""

    uri: Location = ""
    """Folder or s3://bucket/prefix that holds manifest.json."""
    source: Source = ""
    """Source from which the data set is prepared if there is none at `uri` yet; "" = never."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "validation"
    """Split that is scored during the run and selects the best checkpoint. If the data set has no validation split, the
    run scores `test_split` instead and says so."""
    test_split: str = "test"
    """Split that is scored once, at the end, with the best checkpoint; the gate compares models on it."""
    task_mb: int = 32
    """Decoded megabytes that one data task yields: large enough to hide a task's cost, small enough to stream."""
    decode_on: DecodeOn = "host"
    """Where training images are decoded and cropped: in data tasks, or on each worker's device (docs/ingest.md)."""
    max_bad_samples: int = 0
    """Samples of the whole run that may be unreadable, oversized, undecodable or mislabelled. They are skipped and
    listed in the run's quarantine.parquet (docs/bad-data.md); one more stops the run."""
    cache_dir: NodeFolder = ""
    """Folder on each node's own disk that caches what data tasks read from shards; "" = no cache."""
    cache_gb: float = 50.0
    """Size limit of the cache, 10^9 bytes; the least recently used entries are removed first."""
    device_cache: bool = False
    """Keep the whole training split on every worker's device, without data tasks; raw pixels only."""
    ordered: bool = False
    """Give each step the next rows of the plan, for any number of workers and restarts (docs/plan.md)."""
    sampling: Sampling = "uniform"
    """Draws of an epoch: uniform = every image once; balanced = by class, so images of rare classes are repeated
    (docs/imbalance.md)."""
    sampling_power: float = 0.0
    """Power q of "balanced": a class of n images gets draws in proportion to n^q; 0 = all classes alike, 1 = as they
    are."""
    sampling_passes: int = 8
    """Most passes over the shards in an epoch of "balanced": more passes spread the repetitions of an image better, and
    read the shards more often."""

    def __post_init__(self) -> None:
        CropConfig.__post_init__(self)
        _require(bool(self.uri), "data.uri", "must name a folder or s3://bucket/prefix", self.uri)
        _require(self.task_mb >= 1, "data.task_mb", "must be at least 1", self.task_mb)
        _require(self.max_bad_samples >= 0, "data.max_bad_samples", "must be at least 0", self.max_bad_samples)
        _require(0 < self.cache_gb < math.inf, "data.cache_gb", "must be above 0", self.cache_gb)
        _require(self.sampling in get_args(Sampling), "data.sampling", 'must be "uniform" or "balanced"', self.sampling)
        _require(0 <= self.sampling_power <= 1, "data.sampling_power", "must be in [0, 1]", self.sampling_power)
        _require(self.sampling_passes >= 1, "data.sampling_passes", "must be at least 1", self.sampling_passes)
        _require(self.decode_on in get_args(DecodeOn), "data.decode_on", 'must be "host" or "device"', self.decode_on)
        host = self.decode_on == "host"
        _require(host or not self.policy, "data.policy", 'must be "" where data.decode_on = "device"', self.policy)
        _require(not (host and self.device_cache), "data.device_cache", 'needs data.decode_on = "device"', True)

    @property
    def held_out(self) -> HeldOut:
        """Return the prefix of the metrics of `eval_split`."""
        return "test" if self.eval_split == self.test_split else "validation"

    @property
    def cache(self) -> CacheConfig | None:
        """Return the cache of each node; None without `cache_dir`."""
        return CacheConfig(folder=self.cache_dir, cap_bytes=round(self.cache_gb * 1e9)) if self.cache_dir else None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Place, hardware and bookkeeping of a run. Only `seed` changes the weights, and `metric` which are best."""

    name: str = ""
    """Folder of the run under `home`, and name of the MLflow run; "" = the recipe's name and digest."""
    home: Location = "runs"
    """Folder or s3://bucket/prefix for checkpoints and the run's state."""
    experiment: str = "resnet-ray"
    """MLflow experiment."""
    register_as: str = ""
    """Registered model to which the best checkpoint is added as a version; "" = do not register."""
    gate_margin: float = MARGIN
    """Loss of run.metric, 0 to 1, that the test images must rule out at 95 % confidence before a challenger becomes
    champion (docs/decisions/0016-the-gate.md); 1 = always champion."""
    seed: int = 0
    """Seed of all randomness: weights, order, crops, mixing."""
    num_workers: int | tuple[int, int] = 1
    """Training processes; 0 = this process (Ray's local mode); [min, max] = as many as the cluster can hold."""
    cpus_per_worker: int | Literal["auto"] = "auto"
    """CPUs reserved for each worker; data tasks cannot use them. auto = 1 for a worker without a GPU; with a GPU, half
    of its node's CPUs per GPU, at most 4."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Give each worker one GPU; auto = if the cluster has GPUs or may get them. With fewer GPUs than num_workers, the
    run has one worker per GPU (docs/decisions/0031-one-gpu-per-worker.md)."""
    max_failures: int = 3
    """Restarts of the workers within one command; after the last one, run the command again."""
    log_every_steps: int = 50
    """Steps between two logged points of loss and speed."""
    eval_every_epochs: int = 1
    """Epochs between two evaluations."""
    eval_at: tuple[float, ...] = ()
    """Times of evaluations, in schedule.unit, instead of `eval_every_epochs`; the end always has one."""
    checkpoint_every_steps: int = 0
    """Steps between two checkpoints, in addition to those at evaluations; 0 = only at evaluations."""
    metric: Measure = "accuracy"
    """Metric of the held-out images that chooses the best checkpoint, and that the gate compares models by
    (docs/imbalance.md)."""
    keep_best: int = 1
    """Checkpoints kept for their run.metric, in addition to the newest two."""
    relative_to: str = ""
    """Set by the command: the folder in which a relative model.init_from begins. The run keeps its name when that
    folder moves."""

    @property
    def workers(self) -> tuple[int, int]:
        """Return the least and the most workers."""
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
        measures = ("accuracy", *FURTHER)
        _require(self.metric in measures, "run.metric", f"must be one of {', '.join(measures)}", self.metric)
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
