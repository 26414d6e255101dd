"""Resources that a cluster has or can start, and the placement of data tasks.

Data tasks make the autoscaler start CPU nodes, never a GPU node.

Ray has no API that lists the node types its autoscaler may start. Version 2, which `ray up` and KubeRay use, keeps its
configuration private. So this module reads the file that `ray start --autoscaling-config` received on this machine.
Drivers of jobs and Train's controllers run there, on the head. On Kubernetes the operator holds the configuration, and
the files of infra/kuberay repeat it in RESNET_RAY_NODE_TYPES.
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
"""Environment variable of a head on Kubernetes: JSON like `available_node_types` of a cluster file, by worker group."""
_RAY_DIGITS = 10_000  # Ray counts a resource in whole ten-thousandths
_INGEST = {ROLE: "ingest"}
_ON_INGEST: dict[str, Any] = {"label_selector": _INGEST, "fallback_strategy": [{"label_selector": {ROLE: "!ingest"}}]}


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """A kind of node that an autoscaler starts and stops."""

    most: int  # nodes of this type at once
    resources: Mapping[str, float]  # of each node; empty = unknown until Ray runs on the node
    labels: Mapping[str, str]

    def cluster_total(self, kind: str) -> float:
        """Return the amount of a resource that all nodes of this type have together."""
        return self.most * self.resources.get(kind, 0.0)


def cluster_total(kind: str) -> int:
    """Return how much "CPU" or "GPU" the cluster has or can start, as far as its node types are known."""
    import ray

    return int(max(ray.cluster_resources().get(kind, 0.0), sum(each.cluster_total(kind) for each in node_types())))


def gpus_here() -> int:
    """Return how many GPUs Ray counts on the node of this process."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((int(node["Resources"].get("GPU", 0)) for node in _nodes() if node["NodeID"] == own), 0)


def cpus_per_gpu() -> float:
    """Return the fewest CPUs per GPU of any node, including nodes that may still start; infinite without GPUs."""
    present = [node["Resources"] for node in _nodes()]
    known = [*present, *(each.resources for each in node_types())]
    return min((each.get("CPU", 0.0) / each["GPU"] for each in known if each.get("GPU")), default=math.inf)


def unknown_may_come() -> bool:
    """Return whether the autoscaler may start nodes of unknown resources, as with the provider `local`."""
    return any(not each.resources for each in node_types())


def ingest_options() -> dict[str, Any]:
    """Return Ray options that place data tasks: CPU nodes first if there are any or may start any, else any node."""
    there = any(_is_ingest(node.get("Labels", {})) for node in _nodes())
    return dict(_ON_INGEST) if there or any(_is_ingest(each.labels) for each in node_types()) else {}


def evaluation_cpus() -> float:
    """Return the CPUs that an evaluation task holds; each data task of a run holds one CPU minus this amount.

    While a run evaluates, nothing consumes the blocks of its data tasks. The data tasks wait and keep their CPUs. With
    whole CPUs they could hold all of them, and the evaluation that the run waits for would never start. So each CPU
    fits one data task and one evaluation task, and no node runs more data tasks than it has CPUs.
    """
    cpus = [node["Resources"].get("CPU", 0.0) for node in _nodes()]
    most = max([*cpus, *(each.resources.get("CPU", 0.0) for each in node_types())], default=1.0)
    return math.floor(_RAY_DIGITS / (most + 2)) / _RAY_DIGITS


def ingest_cpus(held: float) -> float:
    """Return the CPUs that data tasks may hold at once while workers hold `held` CPUs.

    They are the CPUs of GPU nodes that run now, and all CPUs of CPU nodes that run or may start. The limit is infinite
    if no node may start, or if nodes of unknown resources may. The limit exists because Ray Data, whenever its
    resources are in use, asks the autoscaler for twice as many and accepts nodes of any type.
    """
    types, nodes = node_types(), _nodes()
    if not types or unknown_may_come():
        return math.inf
    there = sum(node["Resources"].get("CPU", 0.0) for node in nodes if not node["Resources"].get("GPU"))
    may_come = sum(each.cluster_total("CPU") for each in types if not each.resources.get("GPU"))
    spare = sum(node["Resources"].get("CPU", 0.0) for node in nodes if node["Resources"].get("GPU"))
    return float(max(1.0, max(there, may_come) + spare - held))


def node_types() -> tuple[NodeType, ...]:
    """Return the worker types of the joined cluster; empty if no autoscaler is visible from this process."""
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
    """Return `available_node_types` of the autoscaler's file; empty if the autoscaler runs on another machine."""
    import ray
    import yaml

    found = autoscaler(port=ray.get_runtime_context().gcs_address.rsplit(":", 1)[1])
    if found is None:
        return {}
    try:
        types: dict[str, Any] = yaml.safe_load(found[1].read_text())["available_node_types"]
    except OSError:  # the file belongs to another user
        return {}
    return types


def autoscaler(port: str = "") -> tuple[str, Path] | None:
    """Return the address of a Ray head on this machine, at `port` if given, and its autoscaler's file; else None."""
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
