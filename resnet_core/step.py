"""One update of the weights, and one forward pass for scoring. No I/O, no logging, no waiting for the device.

Shapes: B images, H and W pixels, C = 3 channels, K classes. Every tensor is on the model's device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resnet_core.augment import augment, normalize
from resnet_core.collective import sum_over_ranks_
from resnet_core.compute import autocast, memory_format
from resnet_core.config import AugmentConfig, Precision
from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """What a step does with a batch."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    label_smoothing: float = 0.0
    precision: Precision = "fp32"
    channels_last: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Microbatch:
    """The images of one forward pass."""

    images_BHWC: Tensor  # uint8
    labels_B: Tensor  # int64

    def __len__(self) -> int:
        return len(self.labels_B)

    def split(self, limit: int) -> list[Microbatch]:
        """In the same order, parts of at most `limit` images (0 = no limit) and of sizes one apart at most.

        Even parts, since BatchNorm takes its statistics from each part alone.
        """
        count = -(-len(self) // limit) if limit else 1
        parts = zip(self.images_BHWC.tensor_split(count), self.labels_B.tensor_split(count), strict=True)
        return [Microbatch(images_BHWC=images, labels_B=labels) for images, labels in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one rank contributes to one step; without microbatches it takes part in the exchange of gradients only."""

    microbatches: list[Microbatch]
    count: int  # images of the step over all ranks
    world_size: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over images, as 0-d float64 tensors on the device: exact under any split, divided once."""

    loss: Tensor
    correct: Tensor
    count: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> Sums:
        loss, correct, count = torch.zeros(3, dtype=torch.float64, device=device).unbind()
        return cls(loss=loss, correct=correct, count=count)

    def __add__(self, other: Sums) -> Sums:
        return Sums(loss=self.loss + other.loss, correct=self.correct + other.correct, count=self.count + other.count)

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy over all ranks, all of which call this; waits for the device."""
        sums = sum_over_ranks_(torch.stack([self.loss, self.correct, self.count]))
        loss, correct, count = sums.tolist()
        return {"loss": loss / count, "accuracy": correct / count}


def train_step(state: TrainState, share: Share, *, lr: float, config: StepConfig, generator: torch.Generator) -> Sums:
    """One SGD update from the shares of all ranks; returns this rank's sums.

    Each image weighs world_size / count, and DDP averages over ranks: the gradient is that of the mean loss of the
    whole global batch, however it is split over ranks and microbatches.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    sums = Sums.zeros(state.device)
    last = len(share.microbatches) - 1
    for index, batch in enumerate(share.microbatches):
        with _gradient_exchange(state.forward, wanted=index == last):
            loss, batch_sums = _forward(state.forward, batch, config, generator)
            (loss * (share.world_size / share.count)).backward()
        sums += batch_sums
    if not share.microbatches:
        _contribute_nothing(state.forward, state.device, config)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(state.model)
    return sums


@torch.no_grad()
def eval_step(model: nn.Module, images_BHWC: Tensor, config: StepConfig) -> Tensor:
    """Float32 logits, B x K, of uint8 images as they are: no augmentation. The model's mode is the caller's."""
    images_BCHW = normalize(images_BHWC, config.augment.mean, config.augment.std)
    return _logits(model, images_BCHW, config).float()


def _logits(forward: nn.Module, images_BCHW: Tensor, config: StepConfig) -> Tensor:
    images_BCHW = images_BCHW.contiguous(memory_format=memory_format(config.channels_last))
    with autocast(images_BCHW.device, config.precision):
        logits_BK: Tensor = forward(images_BCHW)
    return logits_BK


def _forward(
    forward: nn.Module, batch: Microbatch, config: StepConfig, generator: torch.Generator
) -> tuple[Tensor, Sums]:
    logits_BK = _logits(forward, augment(batch.images_BHWC, config.augment, generator), config).float()
    loss = F.cross_entropy(logits_BK, batch.labels_B, reduction="sum", label_smoothing=config.label_smoothing)
    correct = (logits_BK.detach().argmax(dim=1) == batch.labels_B).sum()
    sums = Sums(
        loss=loss.detach().double(),
        correct=correct.double(),
        count=torch.full_like(correct, len(batch), dtype=torch.float64),
    )
    return loss, sums


def _gradient_exchange(forward: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients once per step, in the backward pass of their last microbatch."""
    if wanted or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def _contribute_nothing(forward: nn.Module, device: torch.device, config: StepConfig) -> None:
    """Gradients of exactly zero, through a batch of no rows; eval mode, since such a batch has no statistics."""
    side = 32  # any size will do
    forward.eval()
    # a compiled backward pass of no rows fails in torch 2.15, and would be compiled for a step that is rare
    with torch.compiler.set_stance("force_eager"):
        _logits(forward, torch.zeros(0, 3, side, side, device=device), config).sum().backward()
    forward.train()
