"""What a person sees while a run trains: one live line in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from pipelines.foresight import epochs
from pipelines.mailbox import Event, Message, Progress, Recorded
from pipelines.telemetry import waiting
from resnet_core.reaction import held_out

_PLAIN_EVERY_S = 10.0
_STARTING_EVERY_S = 30.0  # in a log, while nothing else is printed


@dataclass(kw_only=True)
class ProgressLine:
    """Epoch, step, loss, images/s, share of the time without data and the stage at fault, time left."""

    console: Console
    total_steps: int
    steps_per_epoch: float
    global_batch_size: int
    first_step: int = 0
    """Of this command: that of the checkpoint which it continues."""
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
        """Take a message in."""
        match message:
            case Event(text=text):
                self._print(text)
            case Progress(step=step, images_per_second=rate):
                self._step, self._rate = step, rate
            case Recorded(record=record):
                self._take(record.step, record.metrics)
        due = isinstance(message, Progress | Recorded) and time.monotonic() - self._printed_at > _PLAIN_EVERY_S
        if due and not self._status and self._step < self.total_steps:
            self._print(self.line())

    def tick(self) -> None:
        """Print in a log, now and then, that the workers are still starting; a terminal's line moves by itself."""
        if not self._status and not self._rate and time.monotonic() - self._printed_at > _STARTING_EVERY_S:
            self._print(self.line())

    def line(self) -> str:
        """The line as it stands."""
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
            self.console.print(f"step {step}: {split} accuracy {accuracy:.2%}, loss {held_out(metrics, 'loss'):.4f}")
        elif "train/loss" in metrics:
            self._latest = metrics
            self._step = step
            self._rate = metrics["train/images_per_second"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
