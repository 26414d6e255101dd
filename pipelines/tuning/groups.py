"""The placement groups of trials: given back as soon as the controller that made one is gone.

Ray frees a group that an actor made when the whole job ends, not when the actor does. Train's own cleaner asks the
dashboard whether its controller is alive, and where none runs it never learns it, and never ends: a process for each
trial that was stopped. This one asks the controller, and is started instead.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_EVERY_S = 0.5
_ANSWER_S = 2.0  # a controller that is slower is busy, not gone


@ray.remote(num_cpus=0)
class GroupKeeper:
    """One for a study, beside its driver and as long-lived."""

    def __init__(self) -> None:
        self._held: list[tuple[ActorHandle[Any], PlacementGroup]] = []
        threading.Thread(target=self._watch, name="placement-groups", daemon=True).start()

    def hold(self, controller: ActorHandle[Any], group: PlacementGroup) -> None:
        """Watch a group until whoever made it has removed it, or is gone."""
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


def instead_of_trains() -> None:
    """Have Train start no cleaner of its own for what this process trains."""
    from ray.train.v2.api import data_parallel_trainer

    data_parallel_trainer.PlacementGroupCleanerCallback = ControllerCallback  # type: ignore[attr-defined,assignment]  # idle


class HoldGroup(WorkerGroupCallback):
    """On Train's controller: tells the keeper of each worker group's placement group."""

    def __init__(self, keeper: ActorHandle[Any]) -> None:
        self._keeper = keeper

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._keeper.hold.remote(ray.get_runtime_context().current_actor, group))
