"""A training from memory: the core's step, fed by the feed, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipelines.training.batches import RankBatches, Rows, Steps
from pipelines.training.device_decode import DeviceImages
from resnet_core.augment import step_generator
from resnet_core.compute import compile_forward, to_memory_format
from resnet_core.config import AugmentConfig, ModelConfig, OptimConfig
from resnet_core.models import build_model
from resnet_core.optim import build_optimizer
from resnet_core.state import TrainState
from resnet_core.step import RankBatch, StepConfig, Sums, train_step

CLASSES = 10
OPTIM = OptimConfig(lr_per_256=0.01, momentum=0.9)
CONFIG = StepConfig(augment=AugmentConfig(flip=True))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a test's work is: on a CPU just large enough that nothing is left out."""

    model: str
    batch: int
    size: int
    steps: int


def sizes(device: torch.device) -> Sizes:
    if device.type == "cuda":
        return Sizes(model="resnet18", batch=64, size=128, steps=20)
    return Sizes(model="resnet20", batch=8, size=16, steps=4)


def new_state(device: torch.device, *, compiled: bool = False) -> TrainState:
    torch.manual_seed(0)
    network = build_model(ModelConfig(name=sizes(device).model, num_classes=CLASSES))  # type: ignore[arg-type]
    model = to_memory_format(network.to(device), channels_last=True)
    if compiled and device.type == "cuda":
        compile_forward(model)
    elif compiled:
        model.compile(backend="aot_eager")  # the same graphs, without minutes of a C++ compiler
    return TrainState(model=model, forward=model, optimizer=build_optimizer(model, OPTIM))


def feed_of(blocks: Iterator[Rows], rows: int, batch: int, device: torch.device) -> RankBatches:
    """All of `rows` in steps of `batch`."""
    steps = Steps(
        total_samples=rows,
        total_steps=rows // batch,
        global_batch_size=batch,
        world_size=1,
        microbatch_size=0,
    )
    return RankBatches(blocks, steps, device, DeviceImages(device=device))


def take_step(state: TrainState, share: RankBatch, config: StepConfig = CONFIG) -> Sums:
    generator = step_generator(0, state.step, 0, state.device)
    sums = train_step(state, share, lr=OPTIM.peak_lr, config=config, generator=generator)
    state.step += 1
    return sums


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Refuse what makes the host wait for a GPU, in all threads."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def busy(device: torch.device) -> Iterator[Callable[[], None]]:
    """Give a function that keeps the current stream at work for some milliseconds, so that what is early shows."""
    values = torch.rand(*(2 * [4096 if device.type == "cuda" else 8]), device=device)

    def work() -> None:
        for _ in range(4):
            torch.mm(values, values)

    yield work
