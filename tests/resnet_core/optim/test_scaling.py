"""fp16 with a scaled loss, on a CPU: the same arithmetic as on a GPU, slowly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from resnet_core.config import OptimConfig
from resnet_core.optim.scaling import LossScaler
from resnet_core.state import TrainState
from resnet_core.step import RankBatch, StepConfig, train_step

CPU = torch.device("cpu")
SGD = OptimConfig(momentum=0.9, weight_decay=0.0)
OPTIMIZERS = [SGD, OptimConfig(optimizer="adamw"), OptimConfig(optimizer="lars")]


def step(state: TrainState, share: RankBatch, **settings: Any) -> None:
    train_step(state, share, lr=0.1, config=StepConfig(channels_last=False, **settings), generator=torch.Generator())
    state.step += 1


@pytest.fixture
def scaled(make_state):
    """scaled(config): a state without a scaler, and the same one with."""

    def make(config: OptimConfig = SGD) -> tuple[TrainState, TrainState]:
        plain, other = make_state(config), make_state(config)
        other.scaler = LossScaler(CPU)
        return plain, other

    return make


def difference(one: TrainState, other: TrainState) -> float:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize(
    "settings", [{}, {"clip_norm": 0.01}, {"sam_rho": 0.05}, {"clip_norm": 0.01, "sam_rho": 0.05}], ids=str
)
@pytest.mark.parametrize("optim", OPTIMIZERS, ids=lambda optim: optim.optimizer)
def test_the_scale_leaves_the_step_as_it_is(scaled, make_batch, settings, optim) -> None:
    """Also where gradients are clipped, or climbed along: both see the gradient itself."""
    plain, other = scaled(optim)
    share = RankBatch(microbatches=make_batch(8).split(4), count=8)
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    for _ in range(3):
        step(plain, share, **settings)
        step(other, share, **settings)
    assert difference(plain, other) < 1e-5
    assert any(not torch.equal(before[name], value) for name, value in plain.model.state_dict().items())


@pytest.mark.parametrize("sam_rho", [0.0, 0.05])
def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale(scaled, make_batch, sam_rho: float) -> None:
    untouched, state = scaled()
    share = RankBatch(microbatches=[make_batch(4)], count=4)
    overflow = state.model.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    step(state, share, sam_rho=sam_rho)
    assert difference(untouched, state) == 0.0
    assert float(state.scaler.tensors()["scale"]) == 2.0**15
    overflow.remove()
    step(state, share, sam_rho=sam_rho)
    assert difference(untouched, state) > 0.0


def test_the_scaler_is_saved_and_resumed_with_the_rest(scaled, make_batch, same_state) -> None:
    _, unbroken = scaled()
    _, resumed = scaled()
    share = RankBatch(microbatches=[make_batch(4)], count=4)
    unbroken.scaler.tensors()["scale"].fill_(1024.0)
    for _ in range(2):
        step(unbroken, share)
    saved = unbroken.snapshot()
    assert {name: tensor.tolist() for name, tensor in saved["scaler"].items()} == {"scale": 1024.0, "growth_tracker": 2}
    resumed.load_tensors(saved)
    resumed.step = unbroken.step
    for state in (unbroken, resumed):
        step(state, share)
    same_state(resumed, unbroken)
    assert resumed.scaler.tensors()["growth_tracker"].item() == 3


def test_a_checkpoint_of_another_precision_is_refused(scaled) -> None:
    plain, state = scaled()
    with pytest.raises(ValueError, match=r"missing.*scaler\.growth_tracker"):
        state.load_tensors(plain.snapshot())


def test_autocast_computes_in_fp16() -> None:
    from resnet_core.compute import autocast

    with autocast(CPU, "fp16"):
        assert nn.Linear(4, 4)(torch.ones(2, 4)).dtype == torch.float16
