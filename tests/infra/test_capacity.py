"""What a cluster may yet have, by what its head is told; under Ray's autoscaler: tests/cluster/test_autoscaling.py."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from infra import cluster
from infra.capacity import (
    NODE_TYPES,
    cluster_total,
    cpus_per_gpu,
    evaluation_cpus,
    gpus_here,
    ingest_cpus,
    ingest_options,
)
from infra.errors import UserError

GPU = {"max_workers": 8, "resources": {"CPU": 16, "GPU": 1}, "labels": {"resnet-ray-role": "train"}}
INGEST = {"max_workers": 3, "resources": {"CPU": 32}, "labels": {"resnet-ray-role": "ingest"}}
HEAD = {"max_workers": 0, "resources": {"CPU": 0}}
OWN = {"max_workers": 2, "resources": {}}
THERE = 4  # CPUs of ray_local


def told(monkeypatch: pytest.MonkeyPatch, **types: dict[str, Any]) -> None:
    monkeypatch.setenv(NODE_TYPES, json.dumps(types))


@pytest.mark.parametrize(
    ("types", "cpus", "gpus"),
    [
        ({}, THERE, 0),
        ({"head": HEAD}, THERE, 0),
        ({"head": HEAD, "gpu": GPU, "ingest": INGEST}, 8 * 16 + 3 * 32, 8),
        ({"ingest": {**INGEST, "max_workers": 1, "resources": {"CPU": 2}}}, THERE, 0),
    ],
)
def test_a_cluster_may_come_to_have_what_all_its_types_have(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, types: dict[str, Any], cpus: int, gpus: int
) -> None:
    told(monkeypatch, **types)
    assert (cluster_total("CPU"), cluster_total("GPU")) == (cpus, gpus)
    cluster.connect(min_cpus=cpus, gpus=gpus)


def test_who_asks_for_more_is_told_how_much_there_may_be(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)  # of all tests of this process
    with pytest.raises(UserError, match="needs 5 CPUs at once and the cluster has 4: lower"):
        cluster.connect(min_cpus=THERE + 1)
    with pytest.raises(UserError, match=r"needs 1 GPUs at once and the cluster has none: set run\.use_gpu=false, or"):
        cluster.connect(min_cpus=1, gpus=1)
    told(monkeypatch, gpu=GPU)
    with pytest.raises(UserError, match="needs 9 GPUs at once and the cluster has 8, with every node that may come: "):
        cluster.connect(min_cpus=1, gpus=9)
    told(monkeypatch, own=OWN)
    cluster.connect(min_cpus=1000)  # nobody has said what such a machine has


def test_data_tasks_hold_what_no_gpu_node_is_brought_for(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ingest_cpus(held=2) == math.inf  # nothing scales
    told(monkeypatch, gpu=GPU)
    assert ingest_cpus(held=1) == THERE - 1
    assert ingest_cpus(held=THERE) == 1  # or nothing would ever be read
    told(monkeypatch, gpu=GPU, ingest=INGEST)
    assert ingest_cpus(held=2) == 3 * 32 - 2
    gpu_node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}, "Labels": {}}
    monkeypatch.setattr("ray.nodes", lambda: [gpu_node, gpu_node, {**gpu_node, "Alive": False}])
    assert ingest_cpus(held=2) == 3 * 32 + 2 * 16 - 2
    told(monkeypatch, own=OWN)
    assert ingest_cpus(held=2) == math.inf


def test_data_tasks_go_to_cpu_nodes_first_where_there_may_be_any(
    ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest_options() == {}
    told(monkeypatch, gpu=GPU)
    assert ingest_options() == {}
    placed = {
        "label_selector": {"resnet-ray-role": "ingest"},
        "fallback_strategy": [{"label_selector": {"resnet-ray-role": "!ingest"}}],
    }
    told(monkeypatch, gpu=GPU, ingest=INGEST)
    assert ingest_options() == placed
    told(monkeypatch)
    there = {"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {"resnet-ray-role": "ingest", "zone": "a"}}
    monkeypatch.setattr("ray.nodes", lambda: [there])
    assert ingest_options() == placed
    monkeypatch.setattr("ray.nodes", lambda: [{**there, "Alive": False}])
    assert ingest_options() == {}


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 16, 96, 128, 192, 448])
def test_every_cpu_has_room_for_a_data_task_and_one_of_evaluation(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    """And none for a second data task, whatever part of the node's CPUs workers hold."""
    node = {"Alive": True, "Resources": {"CPU": float(cpus)}, "Labels": {}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    monkeypatch.setattr("infra.capacity.node_types", lambda: ())
    share = evaluation_cpus()
    for free in range(1, cpus + 1):
        assert math.floor(free / (1 - share)) == free
        assert math.floor((free - free * (1 - share)) / share + 1e-6) == free


def test_cpus_for_each_gpu_are_those_of_the_poorest_node(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    assert (cpus_per_gpu(), gpus_here()) == (math.inf, 0)
    told(monkeypatch, gpu=GPU, ingest=INGEST)
    assert cpus_per_gpu() == 16  # of a node that may come
    own = {"Alive": True, "NodeID": ray.get_runtime_context().get_node_id(), "Resources": {"CPU": 8.0, "GPU": 2.0}}
    gone = {"Alive": False, "NodeID": "gone", "Resources": {"CPU": 1.0, "GPU": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [gone, own])
    assert (cpus_per_gpu(), gpus_here()) == (4, 2)
