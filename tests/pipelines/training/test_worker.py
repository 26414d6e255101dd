"""What a worker is put together from: its GPU, its share of the node's compilers, room for evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import build_recipe
from pipelines.training import driver, worker
from pipelines.training.placement import Placement
from pipelines.training.stream import Stream
from pipelines.training.worker import WorkerJob, _Worker
from tests.pipelines.conftest import Coloured

SHARE = 0.125


@pytest.fixture
def stream(colours: Coloured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The driver's, for four workers that share steps of 12 images, on a cluster that keeps room for evaluation."""
    monkeypatch.setattr(driver, "evaluation_cpus", lambda: SHARE)
    recipe = build_recipe({}, {**colours.recipe, "optim.global_batch_size": 12})
    placement = Placement(workers=(4, 4), cpus=1, gpu=False)
    folder = RunFolder(open_store(str(tmp_path / "run")))
    return driver._stream(recipe, placement, colours.manifest, folder, math.inf, Console(quiet=True))


def test_the_stream_has_the_share_of_evaluation_and_the_rows_of_a_worker_s_step(stream: Stream) -> None:
    assert (stream.evaluation_cpus, stream.worker_rows) == (SHARE, 3)


def test_a_worker_computes_on_the_device_that_it_was_given(
    stream: Stream, colours: Coloured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And divides the node's compilers, and scores in the room that the stream leaves."""
    given, shared, configured = torch.device("cuda:3"), [], []
    context = SimpleNamespace(
        get_world_rank=lambda: 3, get_world_size=lambda: 4, get_local_rank=lambda: 3, get_local_world_size=lambda: 4
    )
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker, "worker_device", lambda *, gpu: given if gpu else None)
    monkeypatch.setattr(worker, "share_compilers", shared.append)
    monkeypatch.setattr(worker, "configure", lambda _, device: configured.append(device))
    monkeypatch.setattr(worker, "decided", lambda recipe, device, warn: recipe)
    monkeypatch.setattr(worker, "window_of", lambda *_: 1)
    monkeypatch.setattr(_Worker, "_open_batches", lambda self: None)
    recipe = build_recipe({}, {**colours.recipe, "optim.global_batch_size": 12})
    made = _Worker(WorkerJob(recipe=recipe, gpu=True, stream=stream, start=None, mailbox=None))  # type: ignore[arg-type]
    assert made.device == given
    assert (shared, configured) == ([4], [given])
    assert made._data("test", tolerant=False).task_cpus == SHARE
