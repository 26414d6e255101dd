"""Small models and batches; one thread, so that the machine's other work and the order of sums do not matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resnet_core.config import OptimConfig
from resnet_core.config.variants import Variant
from resnet_core.models.resnet import ResNet, initialize
from resnet_core.optim import build_optimizer
from resnet_core.optim.averaging import WeightAverage, exponential
from resnet_core.state import TrainState
from resnet_core.step import Microbatch

NUM_CLASSES = 3
SIDE = 8


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_resnet(seed: int = 0) -> ResNet:
    """Two stages of one block: batch norms, a padding shortcut, 3 classes."""
    torch.manual_seed(seed)
    variant = Variant(depths=(1, 1), widths=(4, 8), stem="cifar", stem_pool="none", shortcut="A")
    model = ResNet(variant, NUM_CLASSES)
    initialize(model, zero_init_last=False)
    return model


def linear_net(seed: int = 0) -> nn.Module:
    """No batch norm: here a gradient does not depend on how a batch is split."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, NUM_CLASSES))


def new_state(model: nn.Module, config: OptimConfig | None = None) -> TrainState:
    config = config or OptimConfig()
    kept = exponential(config.ema_decay, every=config.ema_every, warmup=config.ema_warmup)
    average = WeightAverage(model, kept) if config.ema_decay else None
    return TrainState(model=model, forward=model, optimizer=build_optimizer(model, config), average=average)


def random_batch(rows: int, seed: int = 0) -> Microbatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (rows,), generator=generator)
    return Microbatch(images_BHWC=images, labels_B=labels)


def flat(state: TrainState) -> dict[str, Tensor]:
    return {f"{group}.{name}": t for group, tensors in state.snapshot().items() for name, t in tensors.items()}


@pytest.fixture
def make_state() -> Callable[..., TrainState]:
    """make_state(config=None, seed=0, linear=False)."""

    def make(config: OptimConfig | None = None, *, seed: int = 0, linear: bool = False) -> TrainState:
        return new_state(linear_net(seed) if linear else tiny_resnet(seed), config)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Microbatch]:
    """make_batch(rows, seed=0)."""
    return random_batch


@pytest.fixture
def same_state() -> Callable[[TrainState, TrainState], None]:
    """Asserts that two states hold the same bits under the same names."""

    def check(one: TrainState, other: TrainState) -> None:
        left, right = flat(one), flat(other)
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []
        assert one.step == other.step

    return check
