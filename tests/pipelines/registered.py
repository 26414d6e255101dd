"""A registry with two versions: the second calls azure what is lime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from infra.registry.champion import promote
from infra.registry.versions import LoadedModel, Version, load
from infra.tracking.client import Tracking, resolve_tracking
from infra.tracking.tracker import RunInfo, Tracker
from pipelines.registry.registration import register_checkpoint
from tests.pipelines.conftest import Coloured, hand_computed


@dataclass(frozen=True, kw_only=True)
class Registry:
    tracking: Tracking
    home: Path
    first: Version
    second: Version

    @property
    def uri(self) -> str:
        return f"models:/{self.first.name}@champion"

    def champion_is(self, version: Version) -> LoadedModel:
        promote(self.tracking, version)
        return load(self.tracking, version.uri)


def two_versions(colours: Coloured, weights: dict[str, torch.Tensor], home: Path) -> Registry:
    """Both registered, the first one the champion."""
    swapped = {**weights, **{name: weights[name][[1, 0, 2]] for name in ("fc.weight", "fc.bias")}}
    with pytest.MonkeyPatch.context() as environment:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
            environment.delenv(name, raising=False)
        tracking = resolve_tracking(home)
    tracker = Tracker.start(tracking, RunInfo(experiment="served", name="demo"), warn=print)
    assert tracker.finish("FINISHED", timeout_s=30)
    score = hand_computed(colours, weights)
    first, second = (
        register_checkpoint(
            tracking, colours.checkpoint(each, score, step), colours.data, run_id=tracker.run_id, name="served"
        )[0]
        for each, step in ((weights, 30), (swapped, 40))
    )
    promote(tracking, first)
    return Registry(tracking=tracking, home=home, first=first, second=second)
