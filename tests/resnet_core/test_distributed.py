"""Two real processes over gloo: what a single process can only simulate."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnet_core.augment import normalize
from resnet_core.batchnorm import reestimate_batchnorm
from resnet_core.config import OptimConfig
from resnet_core.config.variants import Variant
from resnet_core.distributed import Vote
from resnet_core.evaluation import EvalBatch, evaluate, exact
from resnet_core.models import ResNet, freeze, freeze_all_but_head
from resnet_core.optim import build_optimizer, fill_state
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, train_step

WORLD = 2
CONFIG = StepConfig()
# images of each step by rank: in the first and the third the ranks differ in their number of microbatches of 4
STEPS = [(9, 3), (6, 0), (5, 1)]


def plain_net() -> nn.Module:
    """No batch norm: its gradient does not depend on how a batch is split, so one process can stand for two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def tiny_resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(Variant(depths=(1, 1), widths=(4, 8), stem="cifar", stem_pool="none", shortcut="A"), 3)


def state_of(model: nn.Module, *, wrapped: bool) -> TrainState:
    forward = DistributedDataParallel(model) if wrapped else model
    return TrainState(model=model, forward=forward, optimizer=build_optimizer(model, OptimConfig()))


def random_batch(rows: int, seed: int) -> Microbatch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Microbatch(images_BHWC=pixels, labels_B=torch.randint(0, 3, (rows,), generator=generator))


def share_of(rank: int, number: int) -> RankBatch:
    """What `rank` of WORLD contributes to step `number`; rank -1 stands for one process that has all of it."""
    sizes = STEPS[number]
    batch = random_batch(sum(sizes), seed=number)
    if rank < 0:
        return RankBatch(microbatches=[batch], count=sum(sizes))
    start, stop = (0, sizes[0]) if rank == 0 else (sizes[0], sum(sizes))
    own = Microbatch(images_BHWC=batch.images_BHWC[start:stop], labels_B=batch.labels_B[start:stop])
    return RankBatch(microbatches=own.split(4) if len(own) else [], count=sum(sizes), world_size=WORLD)


def train(state: TrainState, rank: int) -> list[dict[str, float]]:
    return [
        train_step(state, share_of(rank, number), lr=0.1, config=CONFIG, generator=torch.Generator()).means()
        for number in range(len(STEPS))
    ]


def check_training_equals_one_process(rank: int, alone: TrainState, expected: list[dict[str, float]]) -> None:
    state = state_of(plain_net(), wrapped=True)
    metrics = train(state, rank)
    for mine, reference in zip(metrics, expected, strict=True):
        torch.testing.assert_close(torch.tensor(list(mine.values())), torch.tensor(list(reference.values())))
    for parameter, wanted in zip(state.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, atol=1e-6, rtol=0)


def check_ranks_agree_after_uneven_shares_of_a_resnet(rank: int) -> nn.Module:
    """Also with batch norms, whose statistics differ by rank until they are shared."""
    state = state_of(tiny_resnet(), wrapped=True)
    train(state, rank)
    for parameter in state.model.parameters():
        mine = parameter.detach().clone()
        dist.broadcast(mine, src=0)
        assert torch.equal(mine, parameter)
    return state.model


def check_evaluation_is_exact_with_a_rank_that_scores_nothing(rank: int, model: nn.Module) -> None:
    data = random_batch(11, seed=9)
    whole = EvalBatch(images_BHWC=data.images_BHWC, labels_B=data.labels_B, ids_B=torch.arange(11))
    split = [[whole], []]
    sums, mistakes = evaluate(model, split[rank], CONFIG, num_classes=3, max_mistakes=4)
    assert int(sums.count) == 11
    # every rank now has rank 0's statistics, hence the same result for the whole split: each scores it, counted twice
    doubled, _ = evaluate(model, [whole], CONFIG, num_classes=3)
    assert torch.equal(doubled.confusion, WORLD * sums.confusion)
    assert mistakes.images_NHWC.shape[1:] == (8, 8, 3)
    assert 0 < len(mistakes.ids_N) <= 4
    assert not bool((mistakes.labels_N == mistakes.predicted_N).any())
    assert torch.equal(mistakes.images_NHWC, data.images_BHWC[mistakes.ids_N])


def check_pairs_of_many_classes_are_added_up(rank: int, model: nn.Module) -> None:
    """Ranks that have seen different pairs, and one that has seen none, count as the matrix does."""
    data = random_batch(11, seed=9)
    whole = EvalBatch(images_BHWC=data.images_BHWC, labels_B=data.labels_B, ids_B=torch.arange(11))
    parts = [
        EvalBatch(images_BHWC=data.images_BHWC[rows], labels_B=data.labels_B[rows], ids_B=torch.arange(11)[rows])
        for rows in (slice(0, 7), slice(7, 11))
    ]
    expected, _ = evaluate(model, [[whole], []][rank], CONFIG, num_classes=3)
    exact.MATRIX_CLASSES, before = 2, exact.MATRIX_CLASSES
    try:
        for split in ([[parts[0]], [parts[1]]], [[whole], []], [[], parts]):
            found, _ = evaluate(model, split[rank], CONFIG, num_classes=3)
            assert torch.equal(found.pairs, expected.pairs)
            assert found.metrics()["accuracy"] == expected.metrics()["accuracy"]
    finally:
        exact.MATRIX_CLASSES = before


def check_a_sharpness_aware_step_equals_one_process(rank: int) -> None:
    """Both climb along the gradient of the whole batch, a rank without images too."""
    config = StepConfig(sam_rho=0.1)
    state, alone = state_of(plain_net(), wrapped=True), state_of(plain_net(), wrapped=False)
    plain = state_of(plain_net(), wrapped=False)
    for number in range(len(STEPS)):
        for each, place, settings in ((state, rank, config), (alone, -1, config), (plain, -1, CONFIG)):
            train_step(each, share_of(place, number), lr=0.1, config=settings, generator=torch.Generator())
    for mine, expected in zip(state.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(next(state.model.parameters()), next(plain.model.parameters()), atol=1e-4)


def check_statistics_are_those_of_all_ranks_images(rank: int) -> None:
    images = random_batch(12, seed=4).images_BHWC
    mine, whole = tiny_resnet(), tiny_resnet()
    reestimate_batchnorm(mine, [images[:9], images[9:]][rank : rank + 1], CONFIG)
    expected = whole.conv1(normalize(images, CONFIG.augment.mean, CONFIG.augment.std))
    torch.testing.assert_close(mine.bn1.running_mean, expected.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    for buffer in mine.buffers():
        other = buffer.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, buffer)


class MeetingPlace(nn.SyncBatchNorm):
    """Stands for torch's own, which needs GPUs: in training every forward pass waits for all ranks."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            dist.all_reduce(torch.ones(1))
        return input


def check_synchronized_norms_meet_in_every_pass(rank: int, alone: TrainState) -> None:
    """Also where the ranks have 3 microbatches and 1, or 2 and none; what is made up changes no gradient."""
    state = state_of(plain_net(), wrapped=True)
    assert isinstance(state.model, nn.Sequential)
    # after the wrapping, since DDP knows that a CPU has no such layer
    state.model.insert(1, MeetingPlace(8, affine=False, track_running_stats=False))
    assert state.synchronized and not alone.synchronized
    train(state, rank)
    for parameter, wanted in zip(state.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, atol=1e-6, rtol=0)


def check_a_head_that_trains_first_equals_one_process(rank: int) -> None:
    """Two steps of the head alone, then all but the stem; the wrapper is made anew, as in a run."""
    config = OptimConfig(head_lr_factor=10.0, layer_decay=0.5)
    states = []
    for place in (rank, -1):
        model = tiny_resnet()
        freeze(model, "stem")
        state = TrainState(model=model, forward=model, optimizer=build_optimizer(model, config))
        freeze_all_but_head(model)
        for number in range(len(STEPS)):
            if number == 2:
                freeze(model, "stem")
                fill_state(state.optimizer)
            if number in (0, 2):
                state.forward = DistributedDataParallel(model) if place >= 0 else model
            model.eval()  # statistics of a split batch differ
            train_step(state, share_of(place, number), lr=0.1, config=CONFIG, generator=torch.Generator())
        states.append(state)
    mine, alone = states
    for (name, parameter), expected in zip(mine.model.named_parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, atol=1e-6, rtol=0, msg=name)


def check_a_vote_tells_all_ranks_the_same_at_the_same_time(rank: int) -> None:
    """One rank wishes for something from its fourth call on; both hear of it two calls later, and go on hearing."""
    vote = Vote()
    heard = [vote(2 if rank == 1 and call >= 3 else 0) for call in range(8)]
    assert heard == [0, 0, 0, 0, 0, 2, 2, 2]


def work(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    alone = state_of(plain_net(), wrapped=False)
    expected = train(alone, rank=-1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # a rank that misses an exchange fails the test, it does not hang it
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{rendezvous}", timeout=limit, rank=rank, world_size=WORLD)
    try:
        check_training_equals_one_process(rank, alone, expected)
        model = check_ranks_agree_after_uneven_shares_of_a_resnet(rank)
        check_evaluation_is_exact_with_a_rank_that_scores_nothing(rank, model)
        check_pairs_of_many_classes_are_added_up(rank, model)
        check_a_sharpness_aware_step_equals_one_process(rank)
        check_a_head_that_trains_first_equals_one_process(rank)
        check_statistics_are_those_of_all_ranks_images(rank)
        check_synchronized_norms_meet_in_every_pass(rank, alone)
        check_a_vote_tells_all_ranks_the_same_at_the_same_time(rank)
    finally:
        dist.destroy_process_group()


def test_two_ranks_with_uneven_shares_compute_what_one_process_does(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path / "rendezvous"),), nprocs=WORLD)
