"""A pause in Ray Data's loop.

Ray Data runs a dataset with a loop: wait for tasks, take their blocks, start tasks. The wait
(`process_completed_tasks`) returns at once if every task has a block that may not be taken yet. If no task runs, the
loop does not wait at all. So while the consumer is slower than the data, the loop never rests, and takes a CPU core
from the training steps (docs/decisions/0029-a-pause-in-ray-datas-loop.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    import ray.data
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_SWITCH = "RESNET_RAY_DATA_PAUSE"
"""Environment variable; "0" turns the pause off, for benchmarks."""
LEAST_PAUSE_S = 0.001
MOST_PAUSE_S = 0.1  # as long as Ray's own wait for tasks
_COUNTERS = (
    *("num_inputs_received", "num_task_outputs_generated", "num_outputs_taken"),
    *("num_tasks_submitted", "num_tasks_finished", "num_tasks_failed"),
)


class IdlePause:
    """Pauses a loop after each idle turn, and doubles the pause while turns stay idle.

    Pauses grow from `LEAST_PAUSE_S` to `MOST_PAUSE_S`. A turn that already took that long gets no pause. A consumer
    that asks for a block, or has taken one, ends the pause.
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
        """End the pause, or skip the next one. The consumer's threads call this."""
        self._demand.set()

    def turned(self, moved: int) -> None:
        """End a turn, and pause if it was idle. `moved` counts everything that the loop has moved since its start."""
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
    """Callback that pauses a dataset's loop while nothing moves."""

    def before_execution_starts(self, executor: StreamingExecutor) -> None:
        """Watch the consumer."""
        self.pause = IdlePause(threading.Event.wait)
        report_demand(executor, self.pause.demand)

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Pause, unless the turn moved something."""
        self.pause.turned(moved(executor))


def moved(executor: StreamingExecutor) -> int:
    """Count the blocks received, made and passed on, and the tasks begun and ended, since the execution began."""
    assert executor._topology is not None  # set before the first turn
    return sum(getattr(operator.metrics, name) for operator in executor._topology for name in _COUNTERS)


def report_demand(executor: StreamingExecutor, notify: Callable[[], object]) -> None:
    """Call `notify` whenever a consumer asks for a block, and whenever it gets one."""
    assert executor._output_node is not None  # as above
    _, state = executor._output_node
    get = state.get_output_blocking

    def notifying(output_split_idx: int | None) -> Any:
        notify()
        try:
            return get(output_split_idx)
        finally:
            notify()

    state.get_output_blocking = notifying  # type: ignore[method-assign]


def paused(dataset: ray.data.Dataset) -> ray.data.Dataset:
    """Make the dataset's loop pause while nothing moves; return the dataset."""
    if os.environ.get(PAUSE_SWITCH) != "0":
        dataset.context.custom_execution_callback_classes = [PausedLoop]
    return dataset
