"""A GPU that is full: whose memory it is decides whether another start can help."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infra.errors import UserError
from pipelines.training import worker
from pipelines.training.errors import memory_error

GPU = torch.device("cuda", 1)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of …")


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch):
    """Say how many GiB of 24 this process has reserved at most."""

    def has(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: int(gib * 2**30))

    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    return has


def test_a_gpu_that_the_worker_has_filled_is_a_line_with_the_keys_to_change(reserved) -> None:
    reserved(22)
    assert str(memory_error(FULL, GPU, images=512)) == (
        "out of memory on cuda:1 (NVIDIA L4, 24 GiB) with 512 images in a forward pass: set "
        "compute.microbatch_size=256 or lower, or model.activation_checkpointing=true"
    )


def test_a_gpu_that_others_have_filled_may_be_free_later(reserved) -> None:
    reserved(2)
    assert memory_error(FULL, GPU, images=512) is None


def test_other_errors_are_not_about_memory(reserved) -> None:
    reserved(22)
    assert memory_error(RuntimeError("CUDA error"), GPU, images=512) is None
    assert memory_error(FULL, torch.device("cpu"), images=512) is None


def test_it_leaves_the_worker_as_a_user_s_error_which_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        at = 7

        def __init__(self, job: object) -> None:
            self.closed = False

        def run(self) -> None:
            raise FULL

        def explained(self, error: Exception) -> UserError | None:
            return UserError("set compute.microbatch_size=256") if error is FULL else None

        def close(self) -> None: ...

    monkeypatch.setattr(worker, "_Worker", Full)
    with pytest.raises(UserError, match=r"^set compute\.microbatch_size=256$"):
        worker.train_worker({"job": None})
