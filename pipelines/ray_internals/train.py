"""Private names of Ray Train V2: process group, callbacks, notices of preemption. Imports torch."""

from __future__ import annotations

import atexit
import os
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.train.torch.config import _set_torch_distributed_env_vars as set_distributed_environment
from ray.train.torch.config import _TorchBackend as TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.preemption import PreemptionContext

__all__ = [
    "LeaveAtOnce",
    "PlacementGroupCleanerCallback",
    "TorchBackend",
    "WorkerGroupCallback",
    "placement_group_of",
    "preemption_context",
    "set_distributed_environment",
    "worker_died",
]


def worker_died(error: Exception) -> bool:
    """Return whether Ray reports a dead worker, as opposed to an error that the worker raised."""
    return isinstance(error, RayTrainError) or (isinstance(error, RayError) and not isinstance(error, RayTaskError))


def preemption_context() -> PreemptionContext | None:
    """Return the object in which Train notifies this worker of a preemption; None in local mode.

    Train's public function is a collective call of all ranks, which is too slow for every step.
    """
    try:
        return get_train_context().preemption_context
    except RuntimeError:
        return None


def placement_group_of(worker_group: Any) -> Any:
    """Return the placement group of a worker group that has started."""
    return worker_group.get_worker_group_state().placement_group_handle.placement_group


class LeaveAtOnce(ControllerCallback):
    """Callback that lets the controller's process end without the clean-up of Ray's C++ code.

    In Ray 2.60 that clean-up can wait for itself for ever: a publisher that is destroyed with events in its queue uses
    that queue to inform its subscribers. Ray has taken leave of the process by then, so it would stay.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        atexit.register(os._exit, 0)
