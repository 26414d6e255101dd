"""Messages from the workers to the driver: an actor holds them until the driver takes them.

Only the driver talks to MLflow and to the terminal, so workers need neither. A queue may be lost with its messages:
every checkpoint has the history of records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from infra.tracking.metric_point import MetricPoint

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricMessage:
    """A point of the curves."""

    record: MetricPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A line for the user."""

    text: str
    training: bool | None = None  # whether the workers train from now on; None = as before


@dataclass(frozen=True, kw_only=True, slots=True)
class StepProgress:
    """The current step and rate of the run."""

    step: int
    images_per_second: float


Message = MetricMessage | Event | StepProgress


@ray.remote(num_cpus=0)
class MessageQueue:
    """Queue of messages, first in, first out."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stopping = self._training = False

    def put(self, message: Message) -> bool:
        """Add a message; return whether the workers must stop."""
        self._messages.append(message)
        if isinstance(message, Event) and message.training is not None:
            self._training = message.training
        return self._stopping

    def stop(self) -> bool:
        """Ask the workers to stop; return whether they train, and so have a checkpoint to commit."""
        self._stopping = True
        return self._training

    def take(self) -> list[Message]:
        """Remove and return all messages."""
        messages, self._messages = self._messages, []
        return messages


@dataclass(frozen=True, slots=True)
class SendWarning:
    """Function that sends a warning of another process to the terminal."""

    queue: ActorHandle[Any]

    def __call__(self, text: str) -> None:
        self.queue.put.remote(Event(text=text))
