"""How the pipelines have Ray Data execute: silently, without busy waiting, on no more CPUs than it may hold."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from infra.capacity import ingest_cpus

if TYPE_CHECKING:
    import ray.data


def quiet(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Return the same dataset without Ray's progress bars, reports, and busy waiting.

    The pipelines show their own progress. What goes wrong comes out as an exception, and need not be told twice.
    """
    from ray.util.debug import log_once

    from pipelines.ray_internals import paused

    log_once("ray_data_progress_manager_disabled")  # Ray warns once that the bars are off; this was the once
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return paused(dataset)


def within(dataset: ray.data.Dataset, *, held: float = 0.0, most: float = math.inf, gpus: int = 0) -> ray.data.Dataset:
    """The same dataset, whose tasks hold `most` CPUs and `gpus`; without any, they bring no GPU node.

    Workers hold `held` of the cluster's CPUs.
    """
    import ray.data

    cpus = min(most, ingest_cpus(held))
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=cpus, gpu=gpus)
    return dataset
