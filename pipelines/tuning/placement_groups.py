"""Removal of trials' placement groups as soon as the controller that created one has died.

Ray frees a group that an actor created when the whole job ends, not when the actor dies. Train's own cleaner asks the
dashboard whether its controller is alive. Without a dashboard it never gets an answer and never ends, so each stopped
trial would leave a process behind. `GroupKeeper` replaces that cleaner and asks the controller itself.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from pipelines.ray_internals.train import WorkerGroupCallback, placement_group_of

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_EVERY_S = 0.5
_ANSWER_S = 2.0  # a slower controller is busy, not dead


@ray.remote(num_cpus=0)
class GroupKeeper:
    """Actor, one per study, that removes placement groups whose controller has died. It lives as long as the driver."""

    def __init__(self) -> None:
        self._held: list[tuple[ActorHandle[Any], PlacementGroup]] = []
        threading.Thread(target=self._watch, name="placement-groups", daemon=True).start()

    def hold(self, controller: ActorHandle[Any], group: PlacementGroup) -> None:
        """Watch a group until its controller has removed it or has died."""
        self._held.append((controller, group))

    def _watch(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            for pair in list(self._held):
                if _removed(*pair):
                    self._held.remove(pair)


def _removed(controller: ActorHandle[Any], group: PlacementGroup) -> bool:
    if placement_group_table(group)["state"] == "REMOVED":
        return True
    try:
        ray.get(controller.__ray_ready__.remote(), timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        return False
    except ray.exceptions.RayActorError:
        remove_placement_group(group)
        return True
    return False


class HoldGroup(WorkerGroupCallback):
    """Callback of Train's controller that reports each worker group's placement group to the `GroupKeeper`."""

    def __init__(self, keeper: ActorHandle[Any]) -> None:
        self._keeper = keeper

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = placement_group_of(worker_group)
        ray.get(self._keeper.hold.remote(ray.get_runtime_context().current_actor, group))
