"""Ray Data without its own progress bars and execution reports; the pipelines show their own progress."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray.data


def quiet(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The same dataset, silent when executed: what goes wrong comes out as an exception, and need not be told twice."""
    from ray.util.debug import log_once

    log_once("ray_data_progress_manager_disabled")  # Ray warns once that the bars are off; this was the once
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset
