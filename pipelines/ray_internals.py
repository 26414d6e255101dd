"""Ray's private names that the pipelines rely on, in one place; its test fails when Ray changes them.

Ray Data runs a dataset by a loop: wait for tasks, take their blocks, start tasks. The wait (`process_completed_tasks`)
returns at once where every task has a block that may not be taken yet, and is left out where no task runs: while the
consumer is slower than the data, the loop turns as fast as it can and takes a CPU core from the training steps
(docs/decisions/0029-a-pause-in-ray-datas-loop.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError, RayTaskError

if TYPE_CHECKING:
    import ray.data
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_SWITCH = "RESNET_RAY_DATA_PAUSE"
"""Environment: "0" leaves Ray Data's loop as it is, for benchmarks."""
LEAST_PAUSE_S = 0.001
MOST_PAUSE_S = 0.1  # as long as Ray's own wait for tasks
_COUNTERS = (
    *("num_inputs_received", "num_task_outputs_generated", "num_outputs_taken"),
    *("num_tasks_submitted", "num_tasks_finished", "num_tasks_failed"),
)


class IdlePause:
    """Decides how long each turn of a loop lasts: a turn that moved nothing lasts longer than the idle one before it.

    Pauses double from `LEAST_PAUSE_S` to `MOST_PAUSE_S`. A turn that waited that long by itself gets no pause. A
    consumer that asks for a block, or has taken one, ends the pause.
    """

    def __init__(
        self, wait: Callable[[threading.Event, float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wait, self._clock = wait, clock
        self._demand = threading.Event()
        self._moved = -1
        self._pause_s = 0.0
        self._began = clock()

    def demand(self) -> None:
        """End the pause, or leave out the next one: called from the consumer's threads."""
        self._demand.set()

    def turned(self, moved: int) -> None:
        """End a turn, after which the loop has moved `moved` things in all."""
        if moved != self._moved or self._demand.is_set():
            self._pause_s = 0.0
        else:
            self._pause_s = min(max(LEAST_PAUSE_S, 2 * self._pause_s), MOST_PAUSE_S)
            rest = self._pause_s - (self._clock() - self._began)
            if rest > 0:
                self._wait(self._demand, rest)
                self._pause_s *= not self._demand.is_set()
        self._moved = moved
        self._demand.clear()
        self._began = self._clock()


class PausedLoop(ExecutionCallback):
    """Pauses a dataset's loop while nothing moves."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Watch the consumer."""
        self.pause = IdlePause(threading.Event.wait)
        tell_of_demand(executor, self.pause.demand)

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Pause, unless the turn moved something."""
        self.pause.turned(moved(executor))


def moved(executor: StreamingExecutor) -> int:
    """Blocks that operators have received, made and handed on, and tasks begun and ended, since the execution began."""
    assert executor._topology is not None  # from before the first turn
    return sum(getattr(operator.metrics, name) for operator in executor._topology for name in _COUNTERS)


def tell_of_demand(executor: StreamingExecutor, tell: Callable[[], object]) -> None:
    """Call `tell` whenever a consumer asks for a block, and whenever it gets one."""
    assert executor._output_node is not None  # as above
    _, state = executor._output_node
    get = state.get_output_blocking

    def told(output_split_idx: int | None) -> Any:
        tell()
        try:
            return get(output_split_idx)
        finally:
            tell()

    state.get_output_blocking = told  # type: ignore[method-assign]


def paused(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Return the same dataset, whose loop pauses while nothing moves."""
    if os.environ.get(PAUSE_SWITCH) != "0":
        dataset.context.custom_execution_callback_classes = [PausedLoop]
    return dataset


def worker_died(error: Exception) -> bool:
    """Return whether this is Ray's word for a worker that is gone, and not what the worker raised."""
    from ray.train.v2._internal.exceptions import RayTrainError  # not in data tasks, which load this module

    return isinstance(error, RayTrainError) or (isinstance(error, RayError) and not isinstance(error, RayTaskError))
