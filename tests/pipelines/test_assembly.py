"""What "auto" becomes in a run, and in one that goes on."""

from __future__ import annotations

import pytest
import torch

from infra.errors import UserError
from pipelines import assembly
from pipelines.assembly import continued, decided
from pipelines.recipe import Recipe, load_recipe
from resnet_core import compute

CPU = torch.device("cpu")


def able(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    for module in (compute, assembly):
        monkeypatch.setattr(module, "computes_bf16", lambda device: yes)


def recipe(**settings: object) -> Recipe:
    return load_recipe("mnist5k", {f"compute.{key}": value for key, value in settings.items()})


@pytest.mark.parametrize("others", [0.0, 1.0])
def test_one_worker_that_lacks_bf16_decides_for_all(monkeypatch: pytest.MonkeyPatch, others: float) -> None:
    able(monkeypatch, True)
    monkeypatch.setattr(assembly, "max_over_ranks_", lambda lacking: lacking.clamp(min=others))
    assert decided(recipe(), CPU).compute.precision == ("fp32" if others else "bf16")
    assert decided(recipe(precision="bf16"), CPU).compute.precision == "bf16"


def test_a_checkpoint_decides_for_the_run_that_continues_it(monkeypatch: pytest.MonkeyPatch) -> None:
    able(monkeypatch, True)
    began = recipe(precision="fp32").flat()
    assert continued(decided(recipe(), CPU), began, CPU).compute.precision == "fp32"
    able(monkeypatch, False)
    with pytest.raises(UserError, match=r"this run began in bf16, and this worker's cpu has no bf16 instructions"):
        continued(decided(recipe(), CPU), recipe(precision="bf16").flat(), CPU)
