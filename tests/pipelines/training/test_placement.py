"""What "auto" of run.use_gpu and run.cpus_per_worker becomes on a cluster, and what a person is told of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.config.sections import RunConfig
from pipelines.training import placement
from pipelines.training.placement import place


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Say what the cluster has: its GPUs, and the CPUs for each of them on a node."""

    def has(gpus: int, cpus: float = math.inf) -> None:
        monkeypatch.setattr(placement, "cluster_total", lambda kind: {"GPU": gpus}[kind])
        monkeypatch.setattr(placement, "gpus_here", lambda: gpus)
        monkeypatch.setattr(placement, "cpus_per_gpu", lambda: cpus)

    return has


@pytest.mark.parametrize(
    ("settings", "gpus", "expected", "line"),
    [
        ({"num_workers": 2}, 0, ((2, 2), False, 1), "2, each with 1 CPU: the cluster has no GPU"),
        ({"num_workers": 2}, 2, ((2, 2), True, 4), "2, each with a GPU and 4 CPUs"),
        (
            {"num_workers": 2},
            8,
            ((2, 2), True, 4),
            "2, each with a GPU and 4 CPUs; 6 GPUs stay idle: raise run.num_workers to take them",
        ),
        (
            {"num_workers": 2},
            1,
            ((1, 1), True, 4),
            "1, with a GPU and 4 CPUs: the cluster has 1 GPU, fewer than run.num_workers = 2",
        ),
        ({"num_workers": (1, 8)}, 4, ((1, 8), True, 4), "1 to 8, each with a GPU and 4 CPUs"),
        (
            {"num_workers": (3, 8)},
            2,
            ((2, 2), True, 4),
            "2, each with a GPU and 4 CPUs: the cluster has 2 GPUs, fewer than run.num_workers = 3",
        ),
        (
            {"num_workers": 2, "use_gpu": False},
            1,
            ((2, 2), False, 1),
            "2, each with 1 CPU; 1 GPU stays idle: run.use_gpu = false",
        ),
        ({"num_workers": 2, "use_gpu": True}, 0, ((2, 2), True, 4), "2, each with a GPU and 4 CPUs"),  # `check` refuses
        ({"num_workers": 1, "cpus_per_worker": 6}, 1, ((1, 1), True, 6), "1, with a GPU and 6 CPUs"),
        ({"num_workers": 0}, 0, ((0, 0), False, 1), "this process, on the CPU: this machine has no GPU"),
        ({"num_workers": 0}, 1, ((0, 0), True, 1), "this process, on its GPU"),
    ],
)
def test_workers_take_gpus_where_there_are_any(
    cluster, settings: dict[str, Any], gpus: int, expected: tuple[object, ...], line: str
) -> None:
    cluster(gpus)
    found = place(RunConfig(**settings))
    assert (found.workers, found.gpu, found.cpus) == expected
    assert found.line == f"workers     {line}"
    assert found.per_worker == {"CPU": found.cpus, **({"GPU": 1} if found.gpu else {})}


@pytest.mark.parametrize(("cpus", "expected"), [(4, 2), (16, 4), (1, 1), (3, 1), (24, 4)])
def test_a_gpu_s_worker_leaves_data_tasks_half_of_a_small_node(cluster, cpus: float, expected: int) -> None:
    cluster(1, cpus)
    assert place(RunConfig(num_workers=1)).cpus == expected


def test_what_the_cluster_lacks_is_refused_with_the_key_to_change(ray_local: None, monkeypatch) -> None:
    from infra.errors import UserError

    monkeypatch.setattr("ray.shutdown", lambda: None)  # of all tests of this process
    assert place(RunConfig(num_workers=2)).gpu is False
    with pytest.raises(UserError, match=r"needs 2 GPUs at once and the cluster has none: set run\.use_gpu=false"):
        place(RunConfig(num_workers=2, use_gpu=True, cpus_per_worker=1)).check()
    with pytest.raises(UserError, match="needs 9 CPUs at once and the cluster has 4"):
        place(RunConfig(num_workers=8)).check()
