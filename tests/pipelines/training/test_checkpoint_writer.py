"""What a save commits: the state as it was at that step, whatever the steps after it do."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save

from infra.storage import LocalStore
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import build_recipe
from pipelines.data.order.ledger import Ledger
from pipelines.training import checkpoint_writer
from pipelines.training.bad_samples import BadSamples
from pipelines.training.build import build_state, continued, scaler_of
from pipelines.training.checkpoint_writer import CheckpointWriter, saved
from resnet_core import compute
from resnet_core.loop import Evaluation
from resnet_core.state import Frozen, TrainState
from tests.pipelines.conftest import Coloured

CPU = torch.device("cpu")


def test_a_run_in_fp16_resumes_with_its_scale(colours: Coloured, tmp_path: Path, monkeypatch: Any) -> None:
    recipe = build_recipe({}, {**colours.recipe, "compute.precision": "fp16", "compute.compile": False})
    folder, samples = RunFolder(LocalStore(uri=str(tmp_path / "run"))), colours.manifest.splits["train"]
    feed = SimpleNamespace(drain_marks=lambda: np.array([[0, 0], [0, 1]]))
    sink = CheckpointWriter(
        rank=0,
        batches=cast(Any, feed),
        folder=folder,
        recipe=recipe,
        data_digest=colours.manifest.digest,
        ledger=Ledger(samples),
        split_start=0,
        history=[],
        bad=BadSamples(colours.manifest, folder, 0, print, None),
    )
    state = built(recipe)
    assert state.scaler is not None
    state.scaler.tensors()["scale"].fill_(512.0)
    state.step = 3
    weight = next(state.model.parameters())
    kept = weight.detach().clone()
    sink.save(state, None)
    with torch.no_grad():  # as the next step does, while the checkpoint is written
        weight.add_(1.0)
        state.scaler.tensors()["scale"].fill_(1.0)
    sink.wait()

    checkpoint = folder.load(3)
    assert set(checkpoint.tensors) == {"model", "optimizer", "scaler"}
    assert checkpoint.tensors["scaler"]["scale"].item() == 512.0
    monkeypatch.setattr(compute, "computes_fp16", lambda device: True)
    later = build_recipe({}, {**recipe.flat(), "compute.precision": "fp32"})  # as "auto" may decide elsewhere
    resumed = built(later)
    assert resumed.scaler is None
    resumed.scaler = scaler_of(continued(later, checkpoint.recipe, CPU), CPU)  # as a worker does
    resumed.load_tensors(checkpoint.tensors)
    assert resumed.scaler is not None and resumed.scaler.tensors()["scale"].item() == 512.0
    assert torch.equal(next(resumed.model.parameters()), kept)


def test_views_are_saved_with_their_values() -> None:
    """safetensors writes the memory of a view as it lies: thresholds of classes were lost that way."""
    table = np.arange(6.0).reshape(3, 2)
    found = load(saved({"column": table.T[1], "every_other": np.arange(9)[::2], "one": np.array(7)}))
    assert found["column"].tolist() == [1.0, 3.0, 5.0] and found["every_other"].tolist() == [0, 2, 4, 6, 8]
    assert found["one"].shape == () and found["one"] == 7


def test_a_slow_checkpoint_is_reported_and_its_time_recorded(
    colours: Coloured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    to_host = Frozen.to_host

    def noted(frozen: Frozen) -> Any:
        threads.append(threading.current_thread())
        return to_host(frozen)

    def serialized(tensors: Any) -> bytes:
        threads.append(threading.current_thread())
        return save(tensors)

    monkeypatch.setattr(Frozen, "to_host", noted)
    monkeypatch.setattr(checkpoint_writer, "save_tensors", serialized)
    recipe = build_recipe({}, {**colours.recipe, "compute.compile": False})
    written, lines = threading.Event(), []

    class Slow(LocalStore):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            assert written.wait(60)
            super().write(path, data, if_absent=if_absent)

    def say(line: str) -> None:
        lines.append(line)
        written.set()

    folder = RunFolder(Slow(uri=str(tmp_path / "run")))
    writer = CheckpointWriter(
        rank=0,
        batches=cast(Any, SimpleNamespace(drain_marks=lambda: np.array([[0, 0], [0, 1]]))),
        folder=folder,
        recipe=recipe,
        data_digest=colours.manifest.digest,
        ledger=Ledger(colours.manifest.splits["train"]),
        split_start=0,
        history=[],
        bad=BadSamples(colours.manifest, folder, 0, print, None),
        say=say,
        slow_after_s=0.01,
    )
    state = built(recipe)
    state.step = 3
    assert writer.take_timing() == {}
    writer.save(state, Evaluation(metrics={"accuracy": 0.5}, details={"labels": np.array([1, 2])}))
    writer.wait()
    assert len(threads) > 1 and threading.current_thread() not in threads  # training goes on meanwhile
    assert lines[0].startswith("the checkpoint of step 3 is still not written after 0 s")
    assert re.fullmatch(r"the checkpoint of step 3 was written after \d+ s", lines[1])
    timing = writer.take_timing()
    assert timing.keys() == {"checkpoint/seconds", "checkpoint/retries"} and timing["checkpoint/seconds"] > 0
    assert writer.take_timing() == {}
    scored = folder.load(3).scored
    assert scored is not None and scored["labels"].tolist() == [1, 2]


def built(recipe: Any) -> TrainState:
    return build_state(recipe, CPU, 1, samples=30)
