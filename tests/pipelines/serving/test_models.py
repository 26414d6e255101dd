"""Replicas learn from the serving command what the alias names, and never ask MLflow themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from infra.registry.versions import fetch
from pipelines.evaluation.placement import InferencePlacement
from pipelines.serving.model_watcher import ModelWatcher
from pipelines.serving.models import Announcer, FromBoard, FromMlflow
from tests.pipelines.conftest import SIZE
from tests.pipelines.registered import Registry
from tests.waiting import wait_until

IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def announcer(ray_local: None, registry: Registry) -> Iterator[Announcer]:
    """Looks only when it is told to."""
    import ray

    registry.champion_is(registry.first)
    models = FromMlflow(tracking=registry.tracking, uri=registry.uri)
    made = Announcer(models, fetch(registry.tracking, registry.uri), poll_s=3600)
    yield made
    ray.kill(made.board.board)


def answered_by_a_replica(board: FromBoard) -> tuple[int, Any]:
    """In a process that has never heard of MLflow's address."""
    import ray

    def replica(models: FromBoard) -> tuple[int, Any]:
        now = ModelWatcher(models).now
        return now.version.number, now.predict(IMAGES)

    found: tuple[int, Any] = ray.get(ray.remote(num_cpus=1)(replica).remote(board))
    return found


@pytest.mark.faults
def test_replicas_follow_the_alias_through_the_command(announcer: Announcer, registry: Registry) -> None:
    first = registry.champion_is(registry.first)
    number, probabilities = answered_by_a_replica(announcer.board)
    assert number == 1
    np.testing.assert_array_equal(probabilities, first.predict(IMAGES))

    following = ModelWatcher(announcer.board)
    second = registry.champion_is(registry.second)
    assert not following.refresh()  # nobody has looked yet
    announcer.look()
    assert following.refresh() and following.now.version == second.version
    number, probabilities = answered_by_a_replica(announcer.board)
    assert number == 2
    np.testing.assert_array_equal(probabilities, second.predict(IMAGES))


def test_a_version_that_was_replaced_between_two_looks_is_not_mixed_up(
    announcer: Announcer, registry: Registry
) -> None:
    seen = announcer.board.find()
    registry.champion_is(registry.second)
    announcer.look()
    with pytest.raises(UserError, match="models:/served/1 has been replaced by models:/served/2 meanwhile"):
        announcer.board.fetch(seen)


def test_what_keeps_the_command_from_knowing_reaches_the_replicas_and_passes(
    announcer: Announcer, registry: Registry
) -> None:
    following = ModelWatcher(announcer.board)
    reachable, registry_is_away = announcer._models, dataclasses.replace(registry.tracking, uri="http://127.0.0.1:9")
    announcer._models = dataclasses.replace(reachable, tracking=registry_is_away)
    announcer.look()
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127\.0\.0\.1:9"):
        following.refresh()
    assert following.now.version.number == 1
    announcer._models = reachable
    announcer.look()
    assert not following.refresh()


def test_replicas_say_that_the_command_is_gone(ray_local: None, announcer: Announcer) -> None:
    import ray

    following = ModelWatcher(announcer.board)
    ray.kill(announcer.board.board)
    with pytest.raises(UserError, match=r"serve\.py does not answer its replicas, start it again"):
        wait_until(following.refresh)  # killing is asynchronous: the actor may still answer that nothing is new
    assert following.now.version.number == 1


@pytest.mark.parametrize(("use_gpu", "gpus"), [("auto", 2), (False, 0)])
def test_a_service_on_kubernetes_chooses_by_its_arguments(
    use_gpu: object, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.serving import deployment

    asked = []

    def choose(use_gpu: object, *, copies: int, setting: str) -> InferencePlacement:
        asked.append((use_gpu, copies, setting))
        return InferencePlacement(gpu=use_gpu == "auto")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setattr(deployment, "choose", choose)
    given = {"model": "models:/m@champion", "replicas": 2, "cpus": 4} | (
        {} if use_gpu == "auto" else {"use_gpu": False}
    )
    made: Any = deployment.application(given)._bound_deployment
    assert asked == [(use_gpu, 2, "use_gpu")]
    assert made.num_replicas * made.ray_actor_options["num_gpus"] == gpus
    assert made.ray_actor_options["num_cpus"] == 4
