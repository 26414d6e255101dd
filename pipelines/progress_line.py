"""What a person sees while a run trains: one live line in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.status import Status

from pipelines.mailbox import Event, Message, Progress, Recorded
from pipelines.telemetry import waiting

_PLAIN_EVERY_S = 10.0


@dataclass(kw_only=True)
class ProgressLine:
    """Epoch, step, loss, images/s, share of the time without data and the stage at fault, time left."""

    console: Console
    total_steps: int
    steps_per_epoch: float
    global_batch_size: int
    _latest: dict[str, float] = field(default_factory=dict)
    _step: int = 0
    _rate: float = 0.0
    _printed_at: float = 0.0
    _status: Status | None = None

    def __enter__(self) -> ProgressLine:
        if self.console.is_terminal:
            self._status = self.console.status("starting the workers")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def show(self, message: Message) -> None:
        """Take a message in."""
        match message:
            case Event(text=text):
                self.console.print(text)
            case Progress(step=step, images_per_second=rate):
                self._step, self._rate = step, rate
            case Recorded(record=record):
                self._take(record.step, record.metrics)
        if self._status:
            self._status.update(self.line())
        elif isinstance(message, Progress | Recorded) and time.monotonic() - self._printed_at > _PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            self.console.print(self.line())

    def line(self) -> str:
        """The line as it stands."""
        loss = self._latest.get("train/loss")
        left_s = (self.total_steps - self._step) * self.global_batch_size / self._rate if self._rate else None
        parts = [
            f"epoch {self._step / self.steps_per_epoch:.2f}/{self.total_steps / self.steps_per_epoch:.0f}",
            f"step {self._step}/{self.total_steps}",
            "" if loss is None else f"loss {loss:.4f}",
            f"{self._rate:,.0f} images/s",
            waiting(self._latest),
            "" if left_s is None else f"{_clock(left_s)} left",
        ]
        return "  ".join(part for part in parts if part)

    def _take(self, step: int, metrics: dict[str, float]) -> None:
        if "test/accuracy" in metrics:
            self.console.print(
                f"step {step}: test accuracy {metrics['test/accuracy']:.2%}, loss {metrics['test/loss']:.4f}"
            )
        elif "train/loss" in metrics:
            self._latest = metrics
            self._step = step
            self._rate = metrics["train/images_per_second"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
