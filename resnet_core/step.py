"""One update of the weights, and one forward pass for scoring. No I/O, no logging, no waiting for the device.

Shapes: B images, H and W pixels, C = 3 channels, K classes. Every tensor is on the model's device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from resnet_core.augment import augment, center_of, normalize
from resnet_core.augment.mixing import mix
from resnet_core.collective import max_of_hosts, sum_over_ranks_
from resnet_core.compute import autocast, memory_format
from resnet_core.config import AugmentConfig, Precision
from resnet_core.losses import LossConfig, sum_loss
from resnet_core.optim.sam import climbed
from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """What a step does with a batch, and with its gradient."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean_image_HWC: Tensor | None = None
    """Of the training split, in [0, 1]; wanted by augment.pixel_mean."""
    loss: LossConfig = field(default_factory=LossConfig)
    clip_norm: float = 0.0  # 0 = none
    sam_rho: float = 0.0  # 0 = no sharpness-aware steps
    sam_every: int = 1
    precision: Precision = "fp32"
    channels_last: bool = True

    def climbs(self, step: int) -> bool:
        """Whether the 0-based `step` is sharpness-aware: the last of every sam_every."""
        return self.sam_rho > 0 and (step + 1) % self.sam_every == 0


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

    @property
    def uniform(self) -> bool:
        """Whether all images have one size. Those of two phases of a curriculum mix in any proportion."""
        return len({batch.images_BHWC.shape[1:] for batch in self.microbatches}) <= 1


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
    """One update from the shares of all ranks; returns this rank's sums, of the weights as they were.

    The gradient is that of the mean loss of the whole global batch, however it is split over ranks and microbatches. A
    sharpness-aware step takes it a second time where the first one leads, of the same images under the same draws.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    draws = generator.get_state()
    sums = _accumulate_gradients(state, share, config, generator)
    if config.climbs(state.step):
        generator.set_state(draws)
        with climbed(state.model, config.sam_rho):
            _accumulate_gradients(state, share, config, generator)
    _update(state, config)
    state.optimizer.zero_grad(set_to_none=True)
    if state.average:
        state.average.update(state.model, state.step)
    return sums


def _update(state: TrainState, config: StepConfig) -> None:
    if state.scaler and config.clip_norm:
        state.scaler.unscale_(state.optimizer)  # the norm is that of the gradient itself
    if config.clip_norm:
        clip_grad_norm_(state.model.parameters(), config.clip_norm)
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()


@torch.no_grad()
def eval_step(model: nn.Module, images_BHWC: Tensor, config: StepConfig) -> Tensor:
    """Float32 logits, B x K, of uint8 images as they are: no augmentation. The model's mode is the caller's."""
    center = center_of(config.augment, config.mean_image_HWC)
    return _logits(model, normalize(images_BHWC, center, config.augment.std), config).float()


def _accumulate_gradients(state: TrainState, share: Share, config: StepConfig, generator: torch.Generator) -> Sums:
    """Each image weighs world_size / count, and DDP averages over ranks."""
    sums = Sums.zeros(state.device)
    rounds = _rounds(state, share)
    for index in range(rounds):
        with _gradient_exchange(state.forward, wanted=index == rounds - 1):
            if index < len(share.microbatches):
                loss, batch_sums = _forward(state.forward, share.microbatches[index], config, generator)
                loss = loss * (share.world_size / share.count)
                (state.scaler.scale(loss) if state.scaler else loss).backward()
                sums += batch_sums
            else:
                _contribute_nothing(state, config)
    return sums


def _rounds(state: TrainState, share: Share) -> int:
    """Forward passes of this rank: one per microbatch, and one at least, since all take part in the last exchange.

    Synchronized BatchNorms meet in every pass, so that all ranks have as many as the one that has most.
    """
    own = max(1, len(share.microbatches))
    if not state.synchronized:
        return own
    return max_of_hosts(own)


def _logits(forward: nn.Module, images_BCHW: Tensor, config: StepConfig) -> Tensor:
    images_BCHW = images_BCHW.contiguous(memory_format=memory_format(config.channels_last))
    with autocast(images_BCHW.device, config.precision):
        logits_BK: Tensor = forward(images_BCHW)
    return logits_BK


def _forward(
    forward: nn.Module, batch: Microbatch, config: StepConfig, generator: torch.Generator
) -> tuple[Tensor, Sums]:
    images_BCHW = augment(batch.images_BHWC, config.augment, generator, config.mean_image_HWC)
    images_BCHW, targets = mix(images_BCHW, batch.labels_B, config.augment, generator)
    logits_BK = _logits(forward, images_BCHW, config).float()
    loss = sum_loss(logits_BK, targets, config.loss)
    correct = (logits_BK.detach().argmax(dim=1) == targets.dominant_B).sum()
    sums = Sums(
        loss=loss.detach().double(),
        correct=correct.double(),
        count=torch.full_like(correct, len(batch), dtype=torch.float64),
    )
    return loss, sums


def _gradient_exchange(forward: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients once per backward pass over a share, in that of their last microbatch."""
    if wanted or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def _contribute_nothing(state: TrainState, config: StepConfig) -> None:
    """Gradients of exactly zero, through a batch of no rows.

    In eval mode, since such a batch has no statistics; synchronized BatchNorms have those of the other ranks. They meet
    with tensors of the batch's type, and ranks that have images with fp32: so no autocast here.
    """
    config = replace(config, precision="fp32")
    side = 32  # any size will do
    state.forward.train(state.synchronized)
    # a compiled backward pass of no rows fails in torch 2.15, and would be compiled for a step that is rare
    with torch.compiler.set_stance("force_eager"):
        _logits(state.forward, torch.zeros(0, 3, side, side, device=state.device), config).sum().backward()
    state.forward.train()
