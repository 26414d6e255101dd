"""Sharpness-aware steps against the paper's two gradients, computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from resnet_core.augment import augment
from resnet_core.config import AugmentConfig, OptimConfig
from resnet_core.optim.optimizer import climbed
from resnet_core.step import RankBatch, StepConfig, train_step

RHO = 0.05
CONFIG = StepConfig(sam_rho=RHO, channels_last=False, augment=AugmentConfig(flip=True))
LR = 0.1


def by_hand(model, batch, optimizer, seed: int) -> None:
    """Foret et al. 2021, equations 2 and 3; both gradients of the same flipped images."""
    images = augment(batch.images_BHWC, CONFIG.augment, torch.Generator().manual_seed(seed))

    def gradients(network) -> list[torch.Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(network(images), batch.labels_B), list(network.parameters())))

    first = gradients(model)
    length = sum(float((gradient.double() ** 2).sum()) for gradient in first) ** 0.5
    above = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, gradient in zip(above.parameters(), first, strict=True):
            parameter += RHO / length * gradient
    for parameter, gradient in zip(model.parameters(), gradients(above), strict=True):
        parameter.grad = gradient
    optimizer.step()


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "lamb", "adamw"])
def test_a_step_is_any_optimizers_with_the_gradient_from_above(make_state, make_batch, optimizer) -> None:
    config = OptimConfig(optimizer=optimizer, lr_per_256=LR)
    state, reference = make_state(config), make_state(config)
    plain = make_state(config)
    for step in range(3):
        batch = make_batch(12, seed=step)
        by_hand(reference.model, batch, reference.optimizer, seed=step)
        share = RankBatch(microbatches=[batch], count=12)
        train_step(state, share, lr=LR, config=CONFIG, generator=torch.Generator().manual_seed(step))
        without = StepConfig(channels_last=False, augment=CONFIG.augment)
        train_step(plain, share, lr=LR, config=without, generator=torch.Generator().manual_seed(step))
        state.step += 1
    rows = zip(*(s.model.parameters() for s in (state, reference, plain)), strict=True)
    distances = [(largest(mine - theirs), largest(mine - other)) for mine, theirs, other in rows]
    # Adam divides by gradients that are almost zero for some weights, so that roundings show there
    allowed = 2e-3 if optimizer == "adamw" else 2e-5
    assert max(distance for distance, _ in distances) < allowed
    assert max(distance for _, distance in distances) > 5 * allowed


def test_statistics_and_sums_are_of_the_weights_as_they_were(make_state, make_batch) -> None:
    state, plain = make_state(), make_state()
    share = RankBatch(microbatches=make_batch(12).split(4), count=12)
    sums = train_step(state, share, lr=LR, config=StepConfig(sam_rho=RHO), generator=torch.Generator())
    expected = train_step(plain, share, lr=LR, config=StepConfig(), generator=torch.Generator())
    assert sums.means() == expected.means()
    for mine, theirs in zip(state.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_every_third_step_climbs_and_the_others_are_plain(make_state, make_batch, same_state) -> None:
    config = StepConfig(sam_rho=RHO, sam_every=3)
    assert [step for step in range(9) if config.climbs(step)] == [2, 5, 8]
    state, plain = make_state(), make_state()
    for step in range(3):
        share = RankBatch(microbatches=[make_batch(6, seed=step)], count=6)
        for each, settings in ((state, config), (plain, StepConfig())):
            train_step(each, share, lr=LR, config=settings, generator=torch.Generator())
            each.step += 1
        if step < 2:
            same_state(state, plain)
    assert not torch.equal(state.model.fc.weight, plain.model.fc.weight)


def test_inside_the_weights_are_rho_away_and_afterwards_what_they_were(make_state) -> None:
    model = make_state().model
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with climbed(model, RHO):
        moved = (
            sum(float((p - before[name]).detach().double().square().sum()) for name, p in model.named_parameters())
            ** 0.5
        )
        assert moved == pytest.approx(RHO, rel=1e-4)
        assert all(parameter.grad is None for parameter in model.parameters())
        model.bn1.running_mean.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_long_gradient_is_clipped_and_a_short_one_is_not(make_state, make_batch) -> None:
    plain = OptimConfig(momentum=0.0, weight_decay=0.0)
    share = RankBatch(microbatches=[make_batch(8)], count=8)

    def moved(clip_norm: float) -> float:
        state = make_state(plain)
        before = [parameter.detach().clone() for parameter in state.model.parameters()]
        config = StepConfig(clip_norm=clip_norm)
        train_step(state, share, lr=1.0, config=config, generator=torch.Generator())
        pairs = zip(before, state.model.parameters(), strict=True)
        return sum(float((old - new).detach().double().square().sum()) for old, new in pairs) ** 0.5

    whole = moved(0.0)
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(2 * whole) == whole
