"""Parallel work on many items by Ray Data tasks, and settings of Ray datasets."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from infra.capacity import ingest_cpus, ingest_options
from infra.errors import UserError, machine_error

if TYPE_CHECKING:
    import ray.data

_Item = TypeVar("_Item")


def run_tasks(work: Callable[[_Item], Any], items: Sequence[_Item]) -> Iterator[Any]:
    """Call `work` on each item, one task per item, and yield the results as the tasks end.

    The results must be JSON values.

    Raises:
        UserError: a task raised it. The error is raised unchanged, without the task's traceback.
    """
    if not items:
        return
    import ray.data

    references = [ray.put(item) for item in items]

    def run(row: dict[str, Any]) -> dict[str, str]:
        try:
            return {"result": json.dumps({"value": work(ray.get(references[row["item"]]))})}
        except (UserError, OSError) as error:
            reported = error if isinstance(error, UserError) else machine_error(error)
            if reported is None:
                raise
            return {"result": json.dumps({"error": str(reported)})}

    rows = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items))
    for row in limited(quiet(rows.map(run, num_cpus=1, **ingest_options()))).iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            raise UserError(result["error"])
        yield result["value"]


def quiet(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Return the same Ray dataset without Ray's progress bars, reports and busy waiting.

    The pipelines show their own progress. Failures are raised as exceptions, so Ray need not log them too.
    """
    from ray.util.debug import log_once

    from pipelines.ray_internals.data import paused

    log_once("ray_data_progress_manager_disabled")  # Ray warns once that the bars are off: this uses up that warning
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return paused(dataset)


def limited(dataset: ray.data.Dataset, *, held: float = 0.0, most: float = math.inf, gpus: int = 0) -> ray.data.Dataset:
    """Return the same Ray dataset with a limit on the resources of its tasks: `most` CPUs and `gpus` GPUs.

    Workers hold `held` of the cluster's CPUs. With `gpus=0`, the tasks do not make the cluster start a GPU node.
    """
    import ray.data

    cpus = min(most, ingest_cpus(held))
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=cpus, gpu=gpus)
    return dataset
