"""The pause in Ray Data's loop, and what it takes from Ray's private parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data._internal.execution import streaming_executor_state as state_module
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces.physical_operator import DataOpTask
from ray.data._internal.execution.metadata_fetcher import InlineMetadataFetcher
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.execution.streaming_executor import StreamingExecutor, _ClosingIterator
from ray.data._internal.execution.streaming_executor_state import OpState

from pipelines.data.tasks.ray_tasks import quiet
from pipelines.ray_internals import data as ray_internals
from pipelines.ray_internals.data import MOST_PAUSE_S, PAUSE_SWITCH, IdlePause, PausedLoop, paused

BLOCK_BYTES = 2**20
BLOCKS, TASKS = 40, 4
SPUN = 400  # turns
HAS_SPUN = threading.Event()
PATIENCE_S = 240.0


class FakeLoop:
    """A clock that only turns and pauses move, and a consumer that asks where it is told to."""

    def __init__(self) -> None:
        self.now, self.paused_s = 0.0, 0.0
        self.asks_after_s: float | None = None  # of a pause
        self.pause = IdlePause(self.wait, lambda: self.now)

    def wait(self, demand: threading.Event, seconds: float) -> None:
        if self.asks_after_s is not None and self.asks_after_s < seconds:
            seconds, self.asks_after_s = self.asks_after_s, None
            demand.set()
        self.now += seconds
        self.paused_s = seconds

    def turn(self, moved: int, took_s: float = 0.0) -> float:
        """The pause after a turn, seconds."""
        self.now += took_s
        self.paused_s = 0.0
        self.pause.turned(moved)
        return self.paused_s


def test_a_turn_that_moves_something_is_never_followed_by_a_pause() -> None:
    loop = FakeLoop()
    assert [loop.turn(moved) for moved in range(5)] == [0.0] * 5


def test_pauses_double_while_nothing_moves_up_to_a_limit_and_begin_anew() -> None:
    loop = FakeLoop()
    loop.turn(1)
    pauses = [loop.turn(1) for _ in range(9)]
    assert pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, MOST_PAUSE_S, MOST_PAUSE_S])
    assert loop.turn(2) == 0.0
    assert loop.turn(2) == pytest.approx(0.001)


def test_the_time_that_ray_waited_itself_counts() -> None:
    loop = FakeLoop()
    loop.turn(1)
    assert [loop.turn(1, took_s=0.11) for _ in range(9)] == [0.0] * 9  # loading is the limit: tasks are waited for
    assert loop.turn(1, took_s=0.03) == pytest.approx(MOST_PAUSE_S - 0.03)


def test_a_consumer_that_asks_ends_the_pause_and_is_not_kept_waiting_by_the_next() -> None:
    loop = FakeLoop()
    for _ in range(9):
        loop.turn(1)
    loop.asks_after_s = 0.005
    assert loop.turn(1) == pytest.approx(0.005)
    assert loop.turn(1) == pytest.approx(0.001)
    loop.pause.demand()  # during a turn
    assert loop.turn(1) == 0.0
    assert loop.turn(1) == pytest.approx(0.001)


class IdleExecutor(StreamingExecutor):
    """Ray's loop around turns that move nothing; needs no cluster."""

    def __init__(self, turns: int) -> None:
        context = ray.data.DataContext.get_current().copy()
        super().__init__(context)
        self.left = turns
        output = InputDataBuffer(context, input_data=[])
        self.state = OpState(output, [])
        self._topology, self._output_node = {output: self.state}, (output, self.state)
        self._metadata_fetcher = InlineMetadataFetcher()
        pause = PausedLoop()
        pause.before_execution_starts(self)
        self._callbacks = [pause]

    def _scheduling_loop_step(self, topology: object) -> bool:
        self.left -= 1
        self.turned()
        return self.left > 0

    def turned(self) -> None:
        """Do what a test wants to happen in a turn."""

    def update_metrics(self, sched_loop_duration: object) -> None:
        """Leave out what Ray tells its metrics agent."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every pause, none of which is waited for, while the clock stands still."""
    seconds: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda event, timeout=None: seconds.append(timeout))
    monkeypatch.setattr(ray_internals.IdlePause, "__init__", partialmethod(IdlePause.__init__, clock=lambda: 0.0))
    return seconds


def test_rays_loop_lets_us_pause_after_every_turn(pauses: list[float]) -> None:
    """Ten turns of Ray's own loop that move nothing: all but the first, which has nothing to compare with."""
    IdleExecutor(turns=10).run()
    assert pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, MOST_PAUSE_S, MOST_PAUSE_S])


def test_what_moves_in_rays_operators_is_seen(pauses: list[float]) -> None:
    executor = IdleExecutor(turns=10)
    metrics = executor.state.op.metrics
    executor.turned = lambda: setattr(metrics, "num_outputs_taken", metrics.num_outputs_taken + 1)  # type: ignore[method-assign]
    executor.run()
    assert pauses == []


def test_rays_consumers_come_through_the_method_that_we_watch(pauses: list[float]) -> None:
    """A consumer at the end of the stream asks and is answered: nobody pauses while it comes at every turn."""
    executor = IdleExecutor(turns=10)
    executor.state.mark_finished()
    consumer = _ClosingIterator(executor)

    def ask() -> None:
        with pytest.raises(StopIteration):
            consumer.get_next()

    executor.turned = ask  # type: ignore[method-assign]
    executor.run()
    assert pauses == []


def test_rays_wait_returns_at_once_where_every_task_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the loop spins: it waits for all tasks, and one whose blocks are ready and may not be taken counts.

    If this fails, Ray has changed its wait: look whether the pause can go.
    """
    waits: list[dict[str, Any]] = []

    def wait(refs: list[Any], **how: Any) -> tuple[list[Any], list[Any]]:
        waits.append(how)
        return refs, []

    monkeypatch.setattr(state_module.ray, "wait", wait)
    tasks = [HeldTask(index) for index in range(3)]
    operator = InputDataBuffer(ray.data.DataContext.get_current(), input_data=[])
    monkeypatch.setattr(operator, "get_active_tasks", lambda: tasks)
    guard: Any = SimpleNamespace(should_unblock=lambda op: False)
    policy: Any = SimpleNamespace(name="held", max_task_output_bytes_to_read=lambda op: 0)
    for _ in range(5):
        state_module.process_completed_tasks(
            {operator: OpState(operator, [])}, [policy], 0, guard, InlineMetadataFetcher()
        )
    assert [(wait["num_returns"], wait["timeout"] > 0) for wait in waits] == [(3, True)] * 5
    assert [task.asked_for for task in tasks] == [[0] * 5] * 3  # bytes that may be taken


class HeldTask(DataOpTask):
    """A task that has blocks ready, none of which may be taken."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.asked_for: list[int | None] = []

    def get_waitable(self) -> Any:
        return f"task {self.index}"

    def task_index(self) -> int:
        return self.index

    def on_data_ready(self, max_bytes_to_read: int | None, metadata_fetcher: object) -> int:
        self.asked_for.append(max_bytes_to_read)
        return 0


class Turns(ExecutionCallback):
    """How often the loop has turned."""

    count = 0

    def on_execution_step(self, executor: object) -> None:
        type(self).count += 1


class PlainTurns(Turns):
    """Of Ray's own loop."""

    def on_execution_step(self, executor: object) -> None:
        super().on_execution_step(executor)
        if self.count >= SPUN:
            HAS_SPUN.set()


class PausedTurns(Turns):
    """Of the loop that pauses."""


def blocks(_: object) -> Iterator[dict[str, np.ndarray]]:
    for number in range(BLOCKS):
        yield {"id": np.full(1, number)}


def large_blocks(_: object) -> Iterator[dict[str, np.ndarray]]:
    """More than the data set's share of the object store holds, by far."""
    for _ in range(10_000):
        yield {"pixels": np.zeros((1, BLOCK_BYTES), np.uint8)}


def dataset(
    work: Callable[[object], Iterator[Any]],
    *callbacks: type[ExecutionCallback],
    wrap: Callable[[ray.data.Dataset], Any],
) -> Any:
    """The blocks that two tasks at a time make, which may hold few of them."""
    made = wrap(ray.data.range(TASKS, override_num_blocks=TASKS).map_batches(work, batch_size=None, num_cpus=1))
    context = made.context
    context._max_num_blocks_in_streaming_gen_buffer = 2
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, *callbacks]
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        cpu=2, object_store_memory=8 * BLOCK_BYTES
    )
    return iter(made.iter_batches(batch_size=None, prefetch_batches=1))


@pytest.mark.faults
def test_ray_still_spins_where_a_consumer_holds_it_up_and_with_the_pause_it_does_not(ray_local: None) -> None:
    """Both wait for the same consumer at the same time. No spin at all: Ray has mended it, and the pause can go."""
    plain, mended = (
        dataset(large_blocks, turns, wrap=wrap)
        for turns, wrap in ((PlainTurns, lambda made: made), (PausedTurns, quiet))
    )
    next(plain), next(mended)
    before = PausedTurns.count
    assert HAS_SPUN.wait(PATIENCE_S), f"Ray's loop turned {PlainTurns.count} times only"
    assert PausedTurns.count - before < SPUN / 4
    plain.close(), mended.close()


def test_a_consumer_is_seen_and_movement_is_counted(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block taken ends a pause: Ray's consumers come through the method that we watch."""
    demands, seen = [], []
    monkeypatch.setattr(IdlePause, "demand", lambda pause: demands.append(pause))
    monkeypatch.setattr(IdlePause, "turned", lambda pause, moved: seen.append(moved))
    taken = len(list(dataset(blocks, wrap=quiet)))
    assert taken and len(demands) >= 2 * taken
    made_and_handed_on, run = 2 * taken, 2 * TASKS
    assert seen == sorted(seen) and seen[-1] >= made_and_handed_on + run


@pytest.mark.parametrize(("switch", "callbacks"), [("0", []), ("1", [PausedLoop])])
def test_the_switch_leaves_ray_as_it_is(switch: str, callbacks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PAUSE_SWITCH, switch)
    made: Any = SimpleNamespace(context=ray.data.DataContext.get_current().copy())
    assert paused(made).context.custom_execution_callback_classes == callbacks
