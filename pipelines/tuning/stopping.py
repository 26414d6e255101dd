"""Stop of a study before its end: running trials commit a checkpoint first and can be resumed.

The signal reaches the study's driver; the trials run in other processes. An actor connects them: it has the message
queue of each running trial.
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
    """Actor, one per study, that asks running trials to stop. It lives as long as the driver."""

    def __init__(self) -> None:
        self._queues: dict[int, ActorHandle[Any]] = {}
        self._stopping = False

    def enter(self, trial: int, queue: ActorHandle[Any]) -> bool:
        """Register a trial that starts to train; return True if it must stop at once."""
        if not self._stopping:
            self._queues[trial] = queue
        return self._stopping

    def leave(self, trial: int) -> None:
        """Remove a trial that has committed its checkpoint and updated MLflow."""
        self._queues.pop(trial, None)

    def stop(self) -> int:
        """Ask all trials to stop; return the number of trials that have something to commit."""
        self._stopping = True
        self._drop_unless(_stopped)
        return len(self._queues)

    def waiting(self) -> int:
        """Return the number of trials that have not stopped yet."""
        self._drop_unless(_lives)
        return len(self._queues)

    def _drop_unless(self, wanted: Callable[[ActorHandle[Any]], bool]) -> None:
        for trial, queue in list(self._queues.items()):
            try:
                keep = wanted(queue)
            except ray.exceptions.RayActorError:  # the scheduler has stopped the trial
                keep = False
            if not keep:
                self.leave(trial)


def _stopped(queue: ActorHandle[Any]) -> bool:
    return bool(ray.get(queue.stop.remote()))


def _lives(queue: ActorHandle[Any]) -> bool:
    return bool(ray.get(queue.__ray_ready__.remote()))


def stop_study(stops: ActorHandle[Any], console: Console) -> bool:
    """Wait until every trial has stopped, then end Tune, which does so on SIGUSR1."""
    trials: Any = ray.get(stops.stop.remote())
    console.print(f"stopping: {trials} trials commit a checkpoint ({AGAIN})")
    while trials:
        time.sleep(_LOOK_EVERY_S)
        trials = ray.get(stops.waiting.remote())
    while signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # Tune has no handler yet: the signal would kill us
        time.sleep(_LOOK_EVERY_S)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would print its own way to resume
    os.kill(os.getpid(), signal.SIGUSR1)
    return True
