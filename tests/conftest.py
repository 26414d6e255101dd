"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mlflow_server import a_free_port

LONGEST_FILES = ("test_study.py", "test_ctrl_c.py", "test_bad_input.py", "test_placement.py", "test_train.py")
"""They begin first: tests that run side by side take whole files, and the last one runs alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


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
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
