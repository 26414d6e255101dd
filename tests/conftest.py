"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from infra.local_ray import start as local
from pipelines.training import WORKER_MODULES
from tests.mlflow_server import a_free_port

LONGEST_FILES = (
    *("test_study.py", "test_ctrl_c.py", "test_printed_commands.py", "test_kill.py", "test_faults_data.py"),
    *("test_bad_input.py", "test_ingest.py", "test_placement.py", "test_train.py"),
    *("test_batch_predict.py", "test_validation_split.py", "test_deployment.py", "test_verbs.py", "test_prepare.py"),
    *("test_architecture.py", "test_device_cache.py", "test_equivalence.py", "test_reproduce.py", "test_step.py"),
    *("test_models.py", "test_image_kinds.py", "test_kuberay.py", "test_tracker.py", "test_device_decode.py"),
)
"""They begin first, in this order: processes that run side by side take whole files, and the last one runs alone."""


def pytest_configure(config: pytest.Config) -> None:
    # as infra.cluster.connect: a thread that still reads from a Ray that was shut down must not start another one
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if "PYTEST_XDIST_WORKER" in os.environ:  # threads of processes that run side by side would wait for each other
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def free_port() -> int:
    return a_free_port()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray of four CPUs for all tests of this process."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_AUTH_MODE", "disabled")
        local.start(ray, 4, WORKER_MODULES)
        yield
        ray.shutdown()
