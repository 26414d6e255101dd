from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.augment import augment, normalize
from resnet_core.augment.mixing import mix
from resnet_core.config import AugmentConfig, OptimConfig, Precision
from resnet_core.losses import LossConfig, sum_loss
from resnet_core.step import Microbatch, RankBatch, StepConfig, eval_step, train_step

CONFIG = StepConfig()


def rows(batch: Microbatch, start: int, stop: int) -> Microbatch:
    return Microbatch(images_BHWC=batch.images_BHWC[start:stop], labels_B=batch.labels_B[start:stop])


def update(state, share: RankBatch, config: StepConfig = CONFIG, lr: float = 0.1) -> dict[str, float]:
    return train_step(state, share, lr=lr, config=config, generator=torch.Generator().manual_seed(0)).means()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def gradients_of(state, share: RankBatch) -> list[torch.Tensor]:
    """What one step subtracts from the parameters of a copy of the model, by plain SGD at rate 1."""
    trial = copy.deepcopy(state)
    update(trial, share, lr=1.0)
    pairs = zip(state.model.parameters(), trial.model.parameters(), strict=True)
    return [(before - after).detach() for before, after in pairs]


PLAIN_SGD = OptimConfig(momentum=0.0, weight_decay=0.0)


def test_a_step_is_sgd_on_the_mean_loss(make_state, make_batch) -> None:
    state, batch = make_state(), make_batch(7)
    reference = copy.deepcopy(state.model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    config = StepConfig(loss=LossConfig(label_smoothing=0.1), channels_last=False)
    for _ in range(2):
        logits = reference(normalize(batch.images_BHWC, config.augment.mean, config.augment.std).contiguous())
        loss = F.cross_entropy(logits, batch.labels_B, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for group in state.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(2):
        metrics = update(state, RankBatch(microbatches=[batch], count=7), config)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == batch.labels_B).double().mean()))
    for expected, parameter in zip(reference.parameters(), state.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=1e-5)


def test_accumulated_microbatches_equal_the_whole_batch(make_state, make_batch) -> None:
    state, batch = make_state(PLAIN_SGD, linear=True), make_batch(12)
    whole = gradients_of(state, RankBatch(microbatches=[batch], count=12))
    uneven = gradients_of(
        state, RankBatch(microbatches=[rows(batch, 0, 1), rows(batch, 1, 8), rows(batch, 8, 12)], count=12)
    )
    assert max(float(tensor.abs().max()) for tensor in whole) > 1e-2
    for one, other in zip(whole, uneven, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_mean_over_ranks_of_uneven_shares_is_the_gradient_of_the_whole(make_state, make_batch) -> None:
    state, batch = make_state(PLAIN_SGD, linear=True), make_batch(12)
    whole = gradients_of(state, RankBatch(microbatches=[batch], count=12))
    ranks = [
        gradients_of(state, RankBatch(microbatches=[rows(batch, 0, 9)], count=12, world_size=2)),
        gradients_of(state, RankBatch(microbatches=[rows(batch, 9, 12)], count=12, world_size=2)),
    ]
    for one, *parts in zip(whole, *ranks, strict=True):
        torch.testing.assert_close(one, sum(parts) / 2, atol=1e-6, rtol=0)


def test_a_share_without_images_changes_neither_weights_nor_statistics(make_state, same_state) -> None:
    state, untouched = make_state(PLAIN_SGD), make_state(PLAIN_SGD)
    sums = train_step(
        state,
        RankBatch(microbatches=[], count=4, world_size=2),
        lr=0.1,
        config=CONFIG,
        generator=torch.Generator(),
    )
    same_state(state, untouched)
    assert state.model.training
    assert float(sums.count) == 0


class MeetingPlace(nn.SyncBatchNorm):
    """Stands for torch's own, which needs GPUs: records the type of the tensors that ranks would exchange.

    torch's sends statistics of a batch with rows in fp32, and zeros of the batch's own type for one without
    (torch/nn/modules/_functions.py, SyncBatchNorm, forward and backward).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.sent = torch.float32 if input.numel() else input.dtype
        return input


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_without_images_meets_the_others_in_fp32(make_state, make_batch, precision: Precision) -> None:
    meeting = MeetingPlace(4)
    state = make_state(PLAIN_SGD, linear=True)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    state.model = state.forward = nn.Sequential(nn.Conv2d(3, 4, 3), meeting, head)
    sent = []
    for batches in ([make_batch(4)], []):
        share = RankBatch(microbatches=batches, count=4, world_size=2)
        config = StepConfig(precision=precision)
        train_step(state, share, lr=0.1, config=config, generator=torch.Generator())
        sent.append(meeting.sent)
    assert sent == [torch.float32, torch.float32]


def test_sizes_that_mix_are_told_from_a_batch_of_one(make_batch) -> None:
    def share(*sides: int) -> RankBatch:
        images = [torch.zeros(2, side, side, 3, dtype=torch.uint8) for side in sides]
        parts = [Microbatch(images_BHWC=each, labels_B=torch.zeros(2, dtype=torch.int64)) for each in images]
        return RankBatch(microbatches=parts, count=8)

    assert share().uniform and share(8).uniform and share(8, 8).uniform
    assert not share(8, 16).uniform


def test_one_batch_is_learnt_by_heart(make_state, make_batch) -> None:
    state, share = make_state(), RankBatch(microbatches=[make_batch(8)], count=8)
    losses = [update(state, share)["loss"] for _ in range(60)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.05
    assert update(state, share)["accuracy"] == 1.0


def test_the_rate_reaches_every_group_and_gradients_are_freed(make_state, make_batch) -> None:
    state = make_state()
    update(state, RankBatch(microbatches=[make_batch(4)], count=4), lr=0.03)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.03, 0.03]
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_the_average_is_updated_once_a_step(make_state, make_batch) -> None:
    state = make_state(OptimConfig(ema_decay=0.5))
    before = state.model.fc.weight.detach().clone()
    update(state, RankBatch(microbatches=make_batch(8).split(4), count=8))
    torch.testing.assert_close(state.average.model.fc.weight, (before + state.model.fc.weight.detach()) / 2)


def test_draws_are_the_generator_s(make_state, make_batch, same_state) -> None:
    flips = StepConfig(augment=AugmentConfig(flip=True))
    one, other, third = make_state(), make_state(), make_state()
    share = RankBatch(microbatches=[make_batch(16)], count=16)
    for state, seed in ((one, 3), (other, 3), (third, 4)):
        train_step(state, share, lr=0.1, config=flips, generator=torch.Generator().manual_seed(seed))
    same_state(one, other)
    assert not torch.equal(one.model.conv1.weight, third.model.conv1.weight)


def test_mixed_images_count_as_both_of_their_classes(make_state, make_batch) -> None:
    config = StepConfig(augment=AugmentConfig(mixup_alpha=1.0), channels_last=False)
    state, batch = make_state(PLAIN_SGD, linear=True), make_batch(9)
    images, targets = mix(
        augment(batch.images_BHWC, config.augment, gen := generator()), batch.labels_B, config.augment, gen
    )
    logits = copy.deepcopy(state.model)(images)
    expected = sum_loss(logits, targets, config.loss) / 9
    hits = (logits.argmax(1) == targets.dominant_B).double().mean()
    metrics = train_step(
        state, RankBatch(microbatches=[batch], count=9), lr=0.1, config=config, generator=generator()
    ).means()
    assert targets.share_B is not None and 0 < float(targets.share_B[0]) < 1
    assert metrics["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(float(hits))


@pytest.mark.parametrize(("limit", "sizes"), [(0, [10]), (10, [10]), (4, [4, 3, 3]), (3, [3, 3, 2, 2])])
def test_split_keeps_the_order_and_makes_even_parts(make_batch, limit: int, sizes: list[int]) -> None:
    batch = make_batch(10)
    parts = batch.split(limit)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat([part.images_BHWC for part in parts]), batch.images_BHWC)
    assert torch.equal(torch.cat([part.labels_B for part in parts]), batch.labels_B)


def test_memory_format_changes_the_layout_and_not_the_result(make_state, make_batch) -> None:
    images = make_batch(4).images_BHWC
    model = make_state().model.eval()
    seen: list[torch.Tensor] = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain = eval_step(model, images, StepConfig(channels_last=False))
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(eval_step(model, images, CONFIG), plain, atol=1e-5, rtol=1e-5)
    assert seen[0].is_contiguous()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)
    assert not plain.requires_grad
