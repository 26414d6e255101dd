"""From the workers to the driver: an actor that holds messages until the driver takes them.

The driver alone talks to MLflow and to the terminal, so workers need neither. What is lost with a mailbox is never
missed: the history of records is part of every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray

from infra.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """Points of the curves."""

    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something a person should read, one line."""

    text: str
    training: bool | None = None  # steps are taken from now on, or no more


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where the run is."""

    step: int
    images_per_second: float


Message = Recorded | Event | Progress


@ray.remote(num_cpus=0)
class Mailbox:
    """First in, first out."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stopping = self._training = False

    def put(self, message: Message) -> bool:
        """Whether somebody stops the run."""
        self._messages.append(message)
        if isinstance(message, Event) and message.training is not None:
            self._training = message.training
        return self._stopping

    def stop(self) -> bool:
        """Ask the workers to leave; whether they are training, and so have something to commit."""
        self._stopping = True
        return self._training

    def take(self) -> list[Message]:
        """All messages there are."""
        messages, self._messages = self._messages, []
        return messages
