"""What a cluster has and may yet have, and where data tasks go, so that they bring CPU nodes and never a GPU node.

Ray tells no program which nodes its autoscaler may start: the newer one (v2, which `ray up` and KubeRay take) keeps its
configuration to itself. So it is read where the autoscaler reads it, from the file that `ray start
--autoscaling-config` was given on this machine; drivers of jobs and Train's controllers run there, on the head. Where
the operator of Kubernetes has it, infra/kuberay's files say the same in RESNET_RAY_NODE_TYPES.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cluster_rules import ROLE

NODE_TYPES = "RESNET_RAY_NODE_TYPES"
"""Environment of a head on Kubernetes: JSON as `available_node_types` of a cluster file, by worker group."""
_RAY_DIGITS = 10_000  # a resource is a whole number of so many parts
_INGEST = {ROLE: "ingest"}
_ON_INGEST: dict[str, Any] = {"label_selector": _INGEST, "fallback_strategy": [{"label_selector": {ROLE: "!ingest"}}]}


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """A kind of node that an autoscaler starts and stops."""

    most: int  # at once
    resources: Mapping[str, float]  # of each; empty = Ray will find out on the node
    labels: Mapping[str, str]

    def most_of(self, kind: str) -> float:
        """So much of a resource may come with nodes of this type."""
        return self.most * self.resources.get(kind, 0.0)


def most_of(kind: str) -> int:
    """How much of "CPU" or "GPU" the cluster has, or may come to have, as far as that is known."""
    import ray

    return int(max(ray.cluster_resources().get(kind, 0.0), sum(each.most_of(kind) for each in node_types())))


def gpus_here() -> int:
    """Return how many GPUs Ray counts on the node of this process."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((int(node["Resources"].get("GPU", 0)) for node in _nodes() if node["NodeID"] == own), 0)


def cpus_per_gpu() -> float:
    """Return the CPUs for each GPU on the node with the fewest, nodes that may come included; infinite without GPUs."""
    present = [node["Resources"] for node in _nodes()]
    known = [*present, *(each.resources for each in node_types())]
    return min((each.get("CPU", 0.0) / each["GPU"] for each in known if each.get("GPU")), default=math.inf)


def unknown_may_come() -> bool:
    """Whether an autoscaler may start nodes of which nobody has said what they have, as on machines that one has."""
    return any(not each.resources for each in node_types())


def ingest_options() -> dict[str, Any]:
    """Where data tasks run, as options of theirs: CPU nodes first if there are any or may yet come; else anywhere."""
    there = any(_is_ingest(node.get("Labels", {})) for node in _nodes())
    return dict(_ON_INGEST) if there or any(_is_ingest(each.labels) for each in node_types()) else {}


def evaluation_cpus() -> float:
    """Return the CPUs that a task of evaluation holds beside a run's data tasks, each of which holds one CPU less that.

    While a run evaluates, nobody takes the blocks of its data tasks. They wait, and hold their CPUs while they do. With
    whole CPUs they would hold all, and the evaluation that the run waits for would never begin. So every CPU has room
    for a data task and for one of evaluation, and no node for more data tasks than it has CPUs.
    """
    cpus = [node["Resources"].get("CPU", 0.0) for node in _nodes()]
    most = max([*cpus, *(each.resources.get("CPU", 0.0) for each in node_types())], default=1.0)
    return math.floor(_RAY_DIGITS / (most + 2)) / _RAY_DIGITS


def ingest_cpus(held: float) -> float:
    """CPUs that data tasks may hold at once beside `held` of the workers: those of GPU nodes that are there, and all of
    CPU nodes, those that may yet come included; infinite where no node may come.

    Ray Data asks the autoscaler for twice of what it has, whenever that is in use, and takes nodes of any type.
    """
    types, nodes = node_types(), _nodes()
    if not types or unknown_may_come():
        return math.inf
    there = sum(node["Resources"].get("CPU", 0.0) for node in nodes if not node["Resources"].get("GPU"))
    may_come = sum(each.most_of("CPU") for each in types if not each.resources.get("GPU"))
    spare = sum(node["Resources"].get("CPU", 0.0) for node in nodes if node["Resources"].get("GPU"))
    return float(max(1.0, max(there, may_come) + spare - held))


def node_types() -> tuple[NodeType, ...]:
    """The types of workers of the cluster that this process has joined; none where no autoscaler is seen from here."""
    config = _of_kubernetes() or _of_the_autoscaler()
    return tuple(
        NodeType(most=most, resources=kind.get("resources") or {}, labels=kind.get("labels") or {})
        for kind in config.values()
        if (most := int(kind.get("max_workers") or 0))
    )


def _of_kubernetes() -> dict[str, Any]:
    types: dict[str, Any] = json.loads(os.environ.get(NODE_TYPES) or "{}")
    return types


def _of_the_autoscaler() -> dict[str, Any]:
    """`available_node_types` of the file that the autoscaler of this cluster was given, if it runs on this machine."""
    import ray
    import yaml

    found = autoscaler(port=ray.get_runtime_context().gcs_address.rsplit(":", 1)[1])
    if found is None:
        return {}
    try:
        types: dict[str, Any] = yaml.safe_load(found[1].read_text())["available_node_types"]
    except OSError:  # of another user
        return {}
    return types


def autoscaler(port: str = "") -> tuple[str, Path] | None:
    """Address of a Ray head on this machine, that of this port or any, and the file that its autoscaler was given."""
    for options in autoscaler_options():
        address = options.get("--gcs-address", "")
        if address.endswith(f":{port}" if port else ""):
            return address, Path(options["--autoscaling-config"]).expanduser()
    return None


def autoscaler_options() -> Iterator[dict[str, str]]:
    """Yield the `--name=value` options of each autoscaler that runs on this machine with a configuration."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("--autoscaling-config"):
            yield options


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _is_ingest(labels: Mapping[str, str]) -> bool:
    return labels.items() >= _INGEST.items()
