"""Comparison of our training step and torchvision's network in a plain loop, in turns on one device.

Both start from the same weights, take the same uint8 images, which are already on the device, and do the same update:
normalize, forward, cross-entropy, backward, SGD. This needs torch and torchvision only.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resnet_core.augment import step_generator
from resnet_core.compute import compile_forward, memory_format, to_memory_format
from resnet_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, ModelName, OptimConfig, Precision
from resnet_core.models import build_model
from resnet_core.optim import build_optimizer
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, train_step

CLASSES, SEED, GIB = 1000, 0, 2**30
# weight decay on all parameters, so that torchvision's network does the same without parameter groups
OPTIM = OptimConfig(lr_per_256=0.001, momentum=0.9, weight_decay=1e-4, decay_norm_and_bias=True)
WARMUP = 3  # steps of each side before the first round; the first step compiles, and cuDNN tries its algorithms

# Dense bf16 TFLOP/s by a part of the device's name, from NVIDIA's data sheets; the first match counts.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}

Batches = list[tuple[Tensor, Tensor]]  # uint8 images B x H x W x 3, int64 labels B


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Precision, memory format and compilation of a step."""

    precision: Precision
    channels_last: bool
    compiled: bool

    def __str__(self) -> str:
        layout, mode = "channels_last" if self.channels_last else "NCHW", "compiled" if self.compiled else "eager"
        return f"{self.precision} {layout} {mode}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Network, images and length of a comparison."""

    device: torch.device
    model: ModelName
    size: int  # pixels, height and width
    batch: int  # images per step
    steps: int  # of each side in each round
    rounds: int
    clock: Callable[[], float] = time.perf_counter
    """Clock in seconds; `time.process_time` counts the CPU time of this process only, on a busy machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainee:
    """One side of the comparison."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    update: Callable[[int], Tensor]
    """Does the update of a given number; returns the mean loss before it, perhaps before the device has finished."""

    def held(self) -> int:
        """Return the bytes that stay between steps: parameters, buffers and the optimizer's state."""
        slots = [value for slot in self.optimizer.state.values() for value in slot.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *(slot for slot in slots if torch.is_tensor(slot))]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(kw_only=True, slots=True)
class Side:
    """Measurements of one side."""

    setting: Setting
    first_step_s: float = 0.0  # with the compilation, if the side is compiled and no cache has it
    rates: list[float] = field(default_factory=list)  # images/s, one per round
    loss: float = 0.0  # of the last update
    peak_gib: float | None = None  # on a GPU: peak memory, without what the other side holds
    peak_share: float | None = None  # on a GPU whose peak is known, in bf16: fraction of the peak

    @property
    def rate(self) -> float:
        return median(self.rates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Both sides of one comparison."""

    model: str
    size: int
    batch: int
    ours: Side
    theirs: Side

    @property
    def ratios(self) -> list[float]:
        return [mine / other for mine, other in zip(self.ours.rates, self.theirs.rates, strict=True)]


def our_trainee(task: Task, setting: Setting, batches: Batches) -> Trainee:
    """Build the core's network and step, wrapped as in `pipelines.training.build.build_state`."""
    network = build_model(ModelConfig(name=task.model, num_classes=CLASSES))
    network.load_state_dict(first_weights(task.model))
    model = to_memory_format(network.to(task.device), setting.channels_last)
    optimizer = build_optimizer(model, OPTIM)
    if setting.compiled:
        compile_forward(model)
    state = TrainState(model=model, forward=model, optimizer=optimizer)
    config = StepConfig(precision=setting.precision, channels_last=setting.channels_last)

    def update(step: int) -> Tensor:
        images, labels = batches[step % len(batches)]
        batch = RankBatch(microbatches=[Microbatch(images_BHWC=images, labels_B=labels)], count=len(labels))
        generator = step_generator(SEED, step, 0, task.device)
        sums = train_step(state, batch, lr=OPTIM.peak_lr, config=config, generator=generator)
        state.step += 1
        return sums.loss / sums.count

    return Trainee(model=model, optimizer=optimizer, update=update)


def their_trainee(task: Task, setting: Setting, batches: Batches) -> Trainee:
    """Build torchvision's network and the usual training loop."""
    device, layout = task.device, memory_format(setting.channels_last)
    model = torchvision.models.get_model(task.model, num_classes=CLASSES)
    model.load_state_dict(first_weights(task.model))
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=OPTIM.peak_lr,
        momentum=OPTIM.momentum,
        weight_decay=OPTIM.weight_decay,
        fused=True if device.type == "cuda" else None,
    )
    forward = torch.compile(model) if setting.compiled else model
    mean, std = (255 * torch.tensor(value, device=device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))

    def update(step: int) -> Tensor:
        images, labels = batches[step % len(batches)]
        images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        images = images.float().sub_(mean).div_(std)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Trainee(model=model, optimizer=optimizer, update=update)


def first_weights(model: ModelName) -> dict[str, Tensor]:
    """Return the weights that both sides start from; our names are torchvision's."""
    torch.manual_seed(SEED)
    weights: dict[str, Tensor] = torchvision.models.get_model(model, num_classes=CLASSES).state_dict()
    return weights


def random_batches(task: Task, count: int = 4) -> Batches:
    """Return images of noise: the content does not change the time of a step."""
    generator, device = torch.Generator(task.device).manual_seed(SEED), task.device
    shape = (task.batch, task.size, task.size, 3)
    return [
        (
            torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device),
            torch.randint(CLASSES, shape[:1], generator=generator, device=device),
        )
        for _ in range(count)
    ]


def compare(task: Task, ours: Setting, theirs: Setting) -> Result:
    """Measure both sides in turns, each at its setting."""
    batches = random_batches(task)
    trainees = (our_trainee(task, ours, batches), their_trainee(task, theirs, batches))
    sides = Side(setting=ours), Side(setting=theirs)
    for trainee, side in zip(trainees, sides, strict=True):
        side.first_step_s, _ = timed(task, trainee, range(1))
        timed(task, trainee, range(1, WARMUP))
    for index in range(task.rounds):
        first = WARMUP + index * task.steps
        for turn in (0, 1) if index % 2 == 0 else (1, 0):
            trainee, side = trainees[turn], sides[turn]
            seconds, loss = timed(task, trainee, range(first, first + task.steps))
            side.rates.append(task.steps * task.batch / seconds)
            side.loss = float(loss)
            if task.device.type == "cuda":
                most = torch.cuda.max_memory_allocated(task.device) - trainees[1 - turn].held()
                side.peak_gib = max(side.peak_gib or 0.0, most / GIB)
    for side in sides:
        side.peak_share = peak_share(task, side)
    return Result(model=task.model, size=task.size, batch=task.batch, ours=sides[0], theirs=sides[1])


def timed(task: Task, trainee: Trainee, steps: range) -> tuple[float, Tensor]:
    """Return the seconds that the steps take, from idle device to idle device, and the loss of the last step."""
    loss = torch.zeros(())
    _wait_for(task.device)
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(task.device)
    began = task.clock()
    for step in steps:
        loss = trainee.update(step)
    _wait_for(task.device)
    return task.clock() - began, loss


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget() -> None:
    """Free the memory of the last comparison, and its compiled code, which would count against torch's limit."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def training_flops(model: ModelName, size: int) -> float:
    """Return the FLOPs of one image in one step: 2 per multiply-add, and the backward pass twice the forward pass."""
    with torch.device("meta"):
        network, image = torchvision.models.get_model(model, num_classes=CLASSES), torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image)
    return 3.0 * float(counter.get_total_flops())


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense bf16 peak in FLOP/s; None for a CPU and for a GPU that is not in `PEAKS`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak * 1e12 for part, peak in PEAKS.items() if part in name), None)


def peak_share(task: Task, side: Side) -> float | None:
    peak = peak_flops(task.device)
    if peak is None or side.setting.precision != "bf16":
        return None
    return side.rate * training_flops(task.model, task.size) / peak
