"""What a run that gets no further waits for, where that is room on the cluster.

Ray Train waits for nodes without end and says so in its controller's log, which nobody reads.
"""

from __future__ import annotations

import time

import ray
from ray.util import placement_group_table

from infra.launches import recent_refusals
from pipelines.placement import Placement

_QUIET_S = 30.0  # a worker group starts in less, and a model's first step is told when it begins
_AGAIN_S = 300.0


class Standstill:
    """Nothing has come from the workers for a while."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._ask_at = time.monotonic() + _QUIET_S

    def heard(self) -> None:
        """The workers are alive."""
        self._ask_at = time.monotonic() + _QUIET_S

    def reason(self) -> str:
        """A line for a person, now and every five minutes of a standstill; "" at other times, or if room is not it."""
        now = time.monotonic()
        if now < self._ask_at:
            return ""
        text = lack_of_room(self._placement)
        self._ask_at = now + (_AGAIN_S if text else _QUIET_S)
        return text


def lack_of_room(placement: Placement) -> str:
    """What the workers of this job's run need and the cluster does not have, or has given away; "" if nothing."""
    least = placement.workers[0]
    have = ray.cluster_resources()
    for kind, each in placement.per_worker.items():
        present = int(have.get(kind, 0))
        if present < least * each:
            needed = f"{least} worker(s) need {least * each} {kind}s and the cluster has {present}"
            return "; ".join([f"waiting for nodes: {needed}", *_refusals()])
    if _pending():
        needed = " and ".join(f"{each} {kind}" for kind, each in placement.per_worker.items())
        return f"waiting for room: {least} worker(s) of {needed} do not fit into what is free: see `ray status`"
    return ""


def _refusals() -> list[str]:
    """Return what the cloud answered to requests for nodes, and what helps against a quota."""
    told = recent_refusals()
    quota = ["an account's quota grows on request only: docs/aws-first-hour.md has the commands"]
    return [*map(str, told), *(quota if any(each.is_quota for each in told) else [])]


def _pending() -> bool:
    """Whether a placement group of this job waits; the id of a group ends with its job's."""
    job = ray.get_runtime_context().get_job_id()
    return any(group["state"] == "PENDING" and name.endswith(job) for name, group in placement_group_table().items())
