"""Workers stop before the last step on the preemption of a node, or when the user stops the run.

All ranks agree on the step after which they save and stop, so no step is lost. The process that drains a node
(`infra.notice`) notifies Ray, and Train notifies every worker of the group. The user's request to stop comes from the
driver, in the answers to rank 0's messages.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum

import ray

from infra.interruption import asking
from pipelines.ray_internals.train import preemption_context
from resnet_core.distributed import Vote


class StopReason(IntEnum):
    """Reason to stop the workers early. If ranks disagree, the highest value wins."""

    NONE = 0
    PREEMPTED = 1  # the driver resumes the run on the other nodes
    STOPPED = 2


class StopVote:
    """Vote of all ranks after every step: whether all stop now."""

    def __init__(self) -> None:
        self.cause = StopReason.NONE
        self._vote = Vote()
        self._notices = preemption_context()
        self._reply: ray.ObjectRef[bool] | None = None

    def receive(self, reply: ray.ObjectRef[bool]) -> None:
        """Keep the driver's answer to a message, which may still be on its way: whether the user stops the run."""
        self._reply = reply

    def __call__(self, step: int) -> bool:
        self.cause = StopReason(self._vote(self._own_vote()))
        return self.cause != StopReason.NONE

    def _own_vote(self) -> StopReason:
        if self._stop_requested():
            return StopReason.STOPPED
        preempted = self._notices is not None and self._notices.preemption_info is not None
        return StopReason.PREEMPTED if preempted else StopReason.NONE

    def _stop_requested(self) -> bool:
        if self._reply is None or not ray.wait([self._reply], timeout=0)[0]:
            return False
        if ray.get(self._reply):
            return True
        self._reply = None
        return False


def stop_on_signals(stop: Callable[[], bool]) -> AbstractContextManager[threading.Event]:
    """Let the driver ask the workers to stop on Ctrl-C, or on SIGTERM, by which Ray stops a job.

    This works in the process's main thread only; a study stops its trials in another way. `infra.interruption`
    describes what a second signal does.
    """
    return asking(stop, signal.SIGTERM, signal.SIGINT)
