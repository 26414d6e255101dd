"""What the pipelines take from Ray Train's private parts is there, and does what they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.ray_internals import train
from pipelines.training.trainer import _Trainer

ROOT = Path(__file__).parents[3]


def test_the_backend_of_torch_is_the_one_that_ray_train_starts() -> None:
    assert TorchConfig().backend_cls is train.TorchBackend
    assert train.TorchBackend.on_start is not None


def test_the_environment_of_torch_distributed_comes_from_the_worker_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ray.train.torch.config.ray.train.get_context",
        lambda: SimpleNamespace(
            get_local_rank=lambda: 1,
            get_world_rank=lambda: 3,
            get_local_world_size=lambda: 2,
            get_world_size=lambda: 4,
            get_node_rank=lambda: 1,
        ),
    )
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    for name in ("LOCAL_RANK", "RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "NODE_RANK", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.setenv(name, "")
    train.set_distributed_environment()
    assert [os.environ[name] for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE")] == ["1", "3", "4"]


def test_outside_of_a_worker_there_is_no_notice_of_preemption() -> None:
    assert train.preemption_context() is None


def test_the_notice_of_preemption_has_the_field_that_the_vote_reads() -> None:
    assert hasattr(train.PreemptionContext, "preemption_info") or "preemption_info" in vars(train.PreemptionContext())


def test_no_cleaner_of_placement_groups_is_started() -> None:
    """It would hold up each run's end; the other callbacks of Train stay."""

    def kinds(trainer: type[TorchTrainer]) -> set[str]:
        return {type(each).__name__ for each in trainer(lambda: None)._create_default_callbacks()}

    assert kinds(TorchTrainer) - kinds(_Trainer) == {train.PlacementGroupCleanerCallback.__name__}


def test_the_controller_s_process_ends_without_further_clean_up() -> None:
    script = """if True:
        import atexit
        from pipelines.ray_internals.train import LeaveAtOnce
        atexit.register(print, "cleaned up")
        LeaveAtOnce().after_controller_start(None)
    """
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == ""


def test_the_callback_of_worker_groups_is_called_when_one_has_started() -> None:
    assert callable(train.WorkerGroupCallback.after_worker_group_start)


def test_the_placement_group_of_a_worker_group() -> None:
    state = SimpleNamespace(placement_group_handle=SimpleNamespace(placement_group="group"))
    assert train.placement_group_of(SimpleNamespace(get_worker_group_state=lambda: state)) == "group"


@pytest.mark.parametrize(
    ("error", "died"),
    [(RayActorError(), True), (RayTaskError("f", "trace", ValueError("x")), False), (ValueError("x"), False)],
)
def test_a_worker_that_died_is_told_from_an_error_that_it_raised(error: Exception, died: bool) -> None:
    assert train.worker_died(error) is died
