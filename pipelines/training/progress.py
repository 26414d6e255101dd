"""Progress of a run: one live line in a terminal, or a plain line from time to time in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
from ray.util import placement_group_table
from rich.console import Console
from rich.status import Status
from rich.text import Text

from infra.launch_failures import recent_launch_failures
from infra.tracking.tracker import Tracker
from pipelines.training.data_stalls import waiting
from pipelines.training.messages import Event, Message, MetricMessage, StepProgress
from pipelines.training.placement import Placement
from pipelines.training.preview import epochs
from resnet_core.plateau import held_out

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_PLAIN_EVERY_S = 10.0
_STARTING_EVERY_S = 30.0  # in a log, while nothing else is printed


@dataclass(kw_only=True)
class ProgressLine:
    """Line with epoch, step, loss, images/s, fraction of the time without data and its stage, and time left."""

    console: Console
    total_steps: int
    steps_per_epoch: float
    global_batch_size: int
    first_step: int = 0
    """Step of the checkpoint from which this command resumes."""
    _latest: dict[str, float] = field(default_factory=dict)
    _step: int = 0
    _rate: float = 0.0
    _began_at: float = field(default_factory=time.monotonic)
    _printed_at: float = field(default_factory=time.monotonic)
    _status: Status | None = None

    def __post_init__(self) -> None:
        self._step = self.first_step

    def __enter__(self) -> ProgressLine:
        self._began_at = self._printed_at = time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status(self)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()
        if error is None and self._step == self.total_steps > self.first_step:
            self.console.print(self.line())

    def __rich__(self) -> Text:
        return Text(self.line())

    def show(self, message: Message) -> None:
        """Show a message, or update the line with it."""
        match message:
            case Event(text=text):
                self._print(text)
            case StepProgress(step=step, images_per_second=rate):
                self._step, self._rate = step, rate
            case MetricMessage(record=record):
                self._take(record.step, record.metrics)
        due = isinstance(message, StepProgress | MetricMessage) and time.monotonic() - self._printed_at > _PLAIN_EVERY_S
        if due and not self._status and self._step < self.total_steps:
            self._print(self.line())

    def tick(self) -> None:
        """Print in a log, from time to time, that the workers are still starting. A terminal's line updates itself."""
        if not self._status and not self._rate and time.monotonic() - self._printed_at > _STARTING_EVERY_S:
            self._print(self.line())

    def line(self) -> str:
        """Return the current line."""
        if not self._rate:
            return f"starting the workers  {_clock(time.monotonic() - self._began_at)}"
        loss = self._latest.get("train/loss")
        left_s = (self.total_steps - self._step) * self.global_batch_size / self._rate
        ended = self._step == self.total_steps
        length = epochs(self.total_steps, self.steps_per_epoch)
        parts = [
            f"epoch {length if ended else format(self._step / self.steps_per_epoch, '.2f')}/{length}",
            f"step {self._step}/{self.total_steps}",
            "" if loss is None else f"loss {loss:.4f}",
            f"{self._rate:,.0f} images/s",
            waiting(self._latest),
            "" if ended else f"{_clock(left_s)} left",
        ]
        return "  ".join(part for part in parts if part)

    def _print(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self.console.print(text)

    def _take(self, step: int, metrics: dict[str, float]) -> None:
        accuracy = held_out(metrics, "accuracy")
        if accuracy is not None:
            split = "validation" if "validation/accuracy" in metrics else "test"
            precision = held_out(metrics, "mean_average_precision")  # of a multi-label data set
            found = f"accuracy {accuracy:.2%}" if precision is None else f"mean average precision {precision:.2%}"
            self.console.print(f"step {step}: {split} {found}, loss {held_out(metrics, 'loss'):.4f}")
        elif "train/loss" in metrics:
            self._latest = metrics
            self._step = step
            self._rate = metrics["train/images_per_second"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


_TAKE_EVERY_S = 0.5
_END_S = 10.0


@contextmanager
def delivering_messages(
    queue: ActorHandle[Any], tracker: Tracker, line: ProgressLine, stall_check: StallCheck
) -> Iterator[None]:
    """Deliver the workers' messages on a thread while the block runs, and the last ones at its end."""
    done = threading.Event()
    thread = threading.Thread(
        target=_deliver, args=(queue, tracker, line, stall_check, done), name="messages", daemon=True
    )
    with line:
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(_END_S)


def _deliver(
    queue: ActorHandle[Any], tracker: Tracker, line: ProgressLine, stall_check: StallCheck, done: threading.Event
) -> None:
    last = False
    while not last:
        last = done.wait(_TAKE_EVERY_S)
        try:
            messages: list[Message] = ray.get(queue.take.remote())
            if messages:
                stall_check.heard()
            elif reason := stall_check.reason():
                messages = [Event(text=reason)]
        except ray.exceptions.RayError:  # the cluster is gone; the main thread gets the error too
            return
        for message in messages:
            if isinstance(message, MetricMessage):
                tracker.log(message.record)
            line.show(message)
        line.tick()


_QUIET_S = 30.0  # a worker group starts in less, and sends a message before its first step
_AGAIN_S = 300.0


class StallCheck:
    """Explains which cluster resources a stalled run is waiting for."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._check_at = time.monotonic() + _QUIET_S

    def heard(self) -> None:
        """Note that the workers have sent a message."""
        self._check_at = time.monotonic() + _QUIET_S

    def reason(self) -> str:
        """Return what a stalled run is waiting for, at most every five minutes; "" otherwise."""
        now = time.monotonic()
        if now < self._check_at:
            return ""
        text = missing_resources(self._placement)
        self._check_at = now + (_AGAIN_S if text else _QUIET_S)
        return text


def missing_resources(placement: Placement) -> str:
    """Return the resources that this job's workers need and the cluster lacks or has given to others; "" if none."""
    least = placement.workers[0]
    have = ray.cluster_resources()
    for kind, each in placement.per_worker.items():
        present = int(have.get(kind, 0))
        if present < least * each:
            needed = f"{least} worker(s) need {least * each} {kind}s and the cluster has {present}"
            return "; ".join([f"waiting for nodes: {needed}", *_refusals()])
    if _pending():
        needed = " and ".join(f"{each} {kind}" for kind, each in placement.per_worker.items())
        return f"waiting for resources: {least} worker(s) of {needed} need more than is free: see `ray status`"
    return ""


def _refusals() -> list[str]:
    """Return the cloud's refusals of nodes, and what to do about a quota."""
    failures = recent_launch_failures()
    quota = ["request a larger quota for the account: docs/aws-first-hour.md has the commands"]
    return [*map(str, failures), *(quota if any(each.is_quota for each in failures) else [])]


def _pending() -> bool:
    """Return whether a placement group of this job waits. The id of a group ends with the id of its job."""
    job = ray.get_runtime_context().get_job_id()
    return any(group["state"] == "PENDING" and name.endswith(job) for name, group in placement_group_table().items())
