"""When workers leave a run before its last step: a node of theirs is to be taken away, or somebody stops the run.

All ranks agree on the step after which they save and leave, so that nothing done is lost. Ray learns of a node to be
taken away from whoever drains it (`infra.notice`), and Train tells every worker of the group; the wish to stop comes
from the driver, with the answers to rank 0's messages.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum

import ray
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.preemption import PreemptionContext

from infra.interruption import asking


class Cause(IntEnum):
    """Why; of several, the greatest counts."""

    NONE = 0
    PREEMPTED = 1  # the driver starts the rest of the run on the nodes that stay
    STOPPED = 2


class Leaving:
    """Called by every rank after every step: whether all are to leave now."""

    def __init__(self) -> None:
        from resnet_core.collective import Vote

        self.cause = Cause.NONE
        self._vote = Vote()
        self._notices = _notices()
        self._reply: ray.ObjectRef[bool] | None = None

    def hear(self, reply: ray.ObjectRef[bool]) -> None:
        """An answer that is under way: whether somebody stops the run."""
        self._reply = reply

    def __call__(self, step: int) -> bool:
        self.cause = Cause(self._vote(self._wish()))
        return self.cause != Cause.NONE

    def _wish(self) -> Cause:
        if self._told_to_stop():
            return Cause.STOPPED
        told = self._notices is not None and self._notices.preemption_info is not None
        return Cause.PREEMPTED if told else Cause.NONE

    def _told_to_stop(self) -> bool:
        if self._reply is None or not ray.wait([self._reply], timeout=0)[0]:
            return False
        if ray.get(self._reply):
            return True
        self._reply = None
        return False


def _notices() -> PreemptionContext | None:
    """Where Train tells this worker of a node that is taken away; nowhere in local mode.

    Train's public function is a meeting of all ranks, too slow for every step.
    """
    try:
        return get_train_context().preemption_context
    except RuntimeError:
        return None


def stop_on_signals(stop: Callable[[], bool]) -> AbstractContextManager[threading.Event]:
    """In the driver: Ctrl-C, or SIGTERM, which is how Ray stops a job, asks the workers to leave.

    Only where this is the process's main thread: a trial of a study has its own way to be stopped. `infra.interruption`
    says what a second signal does.
    """
    return asking(stop, signal.SIGTERM, signal.SIGINT)
