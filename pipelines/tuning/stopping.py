"""A study that is stopped before its end: its trials commit a checkpoint first, and are not over.

The signal comes to the study's driver, the trials run in other processes. Between them is an actor that knows the
mailbox of each trial under way.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from infra.interruption import AGAIN

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from rich.console import Console

_LOOK_EVERY_S = 0.2


@ray.remote(num_cpus=0)
class Stops:
    """One for a study, beside its driver and as long-lived."""

    def __init__(self) -> None:
        self._mailboxes: dict[int, ActorHandle[Any]] = {}
        self._stopping = False

    def enter(self, trial: int, mailbox: ActorHandle[Any]) -> bool:
        """A trial begins to train; whether it is to leave at once."""
        if not self._stopping:
            self._mailboxes[trial] = mailbox
        return self._stopping

    def leave(self, trial: int) -> None:
        """It has committed what it had, and MLflow knows."""
        self._mailboxes.pop(trial, None)

    def stop(self) -> int:
        """Ask all trials to leave; how many have something to commit."""
        self._stopping = True
        self._keep_those(_stopped)
        return len(self._mailboxes)

    def waiting(self) -> int:
        """How many have not left yet."""
        self._keep_those(_lives)
        return len(self._mailboxes)

    def _keep_those(self, wanted: Callable[[ActorHandle[Any]], bool]) -> None:
        for trial, mailbox in list(self._mailboxes.items()):
            try:
                keep = wanted(mailbox)
            except ray.exceptions.RayActorError:  # the scheduler has stopped its trial
                keep = False
            if not keep:
                self.leave(trial)


def _stopped(mailbox: ActorHandle[Any]) -> bool:
    return bool(ray.get(mailbox.stop.remote()))


def _lives(mailbox: ActorHandle[Any]) -> bool:
    return bool(ray.get(mailbox.__ray_ready__.remote()))


def stop_study(stops: ActorHandle[Any], console: Console) -> bool:
    """Wait until every trial has left, then have Tune end, which takes SIGUSR1 for that."""
    trials: Any = ray.get(stops.stop.remote())
    console.print(f"stopping: {trials} trials commit a checkpoint ({AGAIN})")
    while trials:
        time.sleep(_LOOK_EVERY_S)
        trials = ray.get(stops.waiting.remote())
    while signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # Tune has not begun, and the signal would be the end
        time.sleep(_LOOK_EVERY_S)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it tells how to resume in its own way
    os.kill(os.getpid(), signal.SIGUSR1)
    return True
