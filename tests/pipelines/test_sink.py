"""What a save commits: the state as it was at that step, whatever the steps after it do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from infra.storage import LocalStore
from pipelines.assembly import build_state, continued, scaler_of
from pipelines.bad_samples import BadSamples
from pipelines.checkpoint import RunFolder
from pipelines.data.ledger import Ledger
from pipelines.recipe import build_recipe
from pipelines.sink import Sink
from resnet_core import compute
from resnet_core.state import TrainState

from .conftest import Coloured

CPU = torch.device("cpu")


def test_a_run_in_fp16_resumes_with_its_scale(colours: Coloured, tmp_path: Path, monkeypatch: Any) -> None:
    recipe = build_recipe({}, {**colours.recipe, "compute.precision": "fp16", "compute.compile": False})
    folder, samples = RunFolder(LocalStore(uri=str(tmp_path / "run"))), colours.manifest.splits["train"]
    feed = SimpleNamespace(drain_marks=lambda: np.array([[0, 0], [0, 1]]))
    sink = Sink(
        rank=0,
        feed=cast(Any, feed),
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


def built(recipe: Any) -> TrainState:
    return build_state(recipe, CPU, 1, samples=30)
