"""Training step (one update of the weights) and evaluation step (one forward pass). No I/O, no logging.

Neither step waits for the device.

Shapes: B images, H and W pixels, C = 3 channels, K classes. Every tensor is on the model's device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from resnet_core.augment import augment, center_of, normalize
from resnet_core.augment.mixing import mix
from resnet_core.compute import autocast, memory_format
from resnet_core.config import AugmentConfig, Precision
from resnet_core.distributed import max_of_hosts, sum_over_ranks_
from resnet_core.losses import LossConfig, sum_loss
from resnet_core.optim.optimizer import climbed, set_rates
from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """Settings of a step: augmentation, loss, gradient and arithmetic."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean_image_HWC: Tensor | None = None
    """Mean image of the training split, in [0, 1]; augment.pixel_mean needs it."""
    loss: LossConfig = field(default_factory=LossConfig)
    clip_norm: float = 0.0  # 0 = no clipping
    sam_rho: float = 0.0  # 0 = no sharpness-aware steps
    sam_every: int = 1
    precision: Precision = "fp32"
    channels_last: bool = True

    def climbs(self, step: int) -> bool:
        """Return whether the 0-based `step` is sharpness-aware: the last of every `sam_every` steps is."""
        return self.sam_rho > 0 and (step + 1) % self.sam_every == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Microbatch:
    """Images and labels of one forward pass."""

    images_BHWC: Tensor  # uint8
    labels_B: Tensor  # int64; multi-label: uint8 B x K

    def __len__(self) -> int:
        return len(self.labels_B)

    def split(self, limit: int) -> list[Microbatch]:
        """Split into parts of at most `limit` images, in the same order; 0 = no limit.

        The sizes differ by at most one image, because BatchNorm takes its statistics from each part alone.
        """
        count = -(-len(self) // limit) if limit else 1
        parts = zip(self.images_BHWC.tensor_split(count), self.labels_B.tensor_split(count), strict=True)
        return [Microbatch(images_BHWC=images, labels_B=labels) for images, labels in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBatch:
    """A rank's part of one step; without microbatches the rank takes part in the exchange of gradients only."""

    microbatches: list[Microbatch]
    count: int  # images of the step over all ranks
    world_size: int = 1

    @property
    def uniform(self) -> bool:
        """Return whether all images have the same size; where two phases of a curriculum meet, sizes differ."""
        return len({microbatch.images_BHWC.shape[1:] for microbatch in self.microbatches}) <= 1


_MEANS = {"correct": "accuracy"}  # names of means, where they are not those of the sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over images, as 0-d float64 tensors on the device; dividing once at the end is exact for any split.

    A new field is one more metric, `train/NAME`. Add a value per step, such as a norm, as value * count. Prometheus
    shows those of `_GAUGES` in pipelines/training/metrics.py.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> Sums:
        return cls(**{each.name: torch.zeros((), dtype=torch.float64, device=device) for each in fields(cls)})

    def __add__(self, other: Sums) -> Sums:
        return Sums(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    def means(self) -> dict[str, float]:
        """Return the mean loss and accuracy over all ranks; every rank must call this. Waits for the device."""
        names = [each.name for each in fields(self)]
        sums = sum_over_ranks_(torch.stack([getattr(self, name) for name in names])).tolist()
        totals = dict(zip(names, sums, strict=True))
        count = totals.pop("count")
        return {_MEANS.get(name, name): total / count for name, total in totals.items()}


def train_step(
    state: TrainState, batch: RankBatch, *, lr: float, config: StepConfig, generator: torch.Generator
) -> Sums:
    """Update the weights once from the batches of all ranks; return this rank's sums, computed before the update.

    The gradient is that of the mean loss over the global batch; its split into ranks and microbatches does not
    matter. A sharpness-aware step computes a second gradient at the weights that the first gradient leads to, from the
    same images with the same random draws.
    """
    set_rates(state.optimizer, lr)
    draws = generator.get_state()
    sums = _accumulate_gradients(state, batch, config, generator)
    if config.climbs(state.step):
        generator.set_state(draws)
        with climbed(state.model, config.sam_rho):
            _accumulate_gradients(state, batch, config, generator)
    _update(state, config)
    state.optimizer.zero_grad(set_to_none=True)
    if state.average:
        state.average.update(state.model, state.step)
    return sums


def _update(state: TrainState, config: StepConfig) -> None:
    if state.scaler and config.clip_norm:
        state.scaler.unscale_(state.optimizer)  # clip_norm is for the unscaled gradient
    if config.clip_norm:
        clip_grad_norm_(state.model.parameters(), config.clip_norm)
    if state.scaler:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()


@torch.no_grad()
def eval_step(model: nn.Module, images_BHWC: Tensor, config: StepConfig) -> Tensor:
    """Return float32 logits, B x K, of uint8 images without augmentation; the caller sets the model's mode."""
    center = center_of(config.augment, config.mean_image_HWC)
    return _logits(model, normalize(images_BHWC, center, config.augment.std), config).float()


def _accumulate_gradients(state: TrainState, batch: RankBatch, config: StepConfig, generator: torch.Generator) -> Sums:
    """Add up the gradients of a rank batch: each image has weight world_size / count, and DDP averages over ranks."""
    sums = Sums.zeros(state.device)
    rounds = _rounds(state, batch)
    for index in range(rounds):
        with _gradient_exchange(state.forward, wanted=index == rounds - 1):
            if index < len(batch.microbatches):
                loss, microbatch_sums = _forward(state.forward, batch.microbatches[index], config, generator)
                loss = loss * (batch.world_size / batch.count)
                (state.scaler.scale(loss) if state.scaler else loss).backward()
                sums += microbatch_sums
            else:
                _contribute_nothing(state, config)
    return sums


def _rounds(state: TrainState, batch: RankBatch) -> int:
    """Return the number of this rank's forward passes: one per microbatch.

    It is at least one, because every rank takes part in the last exchange of gradients. Synchronized BatchNorms
    communicate in every pass, so with them all ranks make as many passes as the rank with the most microbatches.
    """
    own = max(1, len(batch.microbatches))
    if not state.synchronized:
        return own
    return max_of_hosts(own)


def _logits(forward: nn.Module, images_BCHW: Tensor, config: StepConfig) -> Tensor:
    images_BCHW = images_BCHW.contiguous(memory_format=memory_format(config.channels_last))
    with autocast(images_BCHW.device, config.precision):
        logits_BK: Tensor = forward(images_BCHW)
    return logits_BK


def _forward(
    forward: nn.Module, microbatch: Microbatch, config: StepConfig, generator: torch.Generator
) -> tuple[Tensor, Sums]:
    images_BCHW = augment(microbatch.images_BHWC, config.augment, generator, config.mean_image_HWC)
    images_BCHW, targets = mix(images_BCHW, microbatch.labels_B, config.augment, generator)
    logits_BK = _logits(forward, images_BCHW, config).float()
    loss = sum_loss(logits_BK, targets, config.loss)
    correct = targets.hits(logits_BK.detach())
    sums = Sums(
        loss=loss.detach().double(),
        correct=correct.double(),
        count=torch.full_like(correct, len(microbatch), dtype=torch.float64),
    )
    return loss, sums


def _gradient_exchange(forward: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Return a context in which DDP exchanges gradients if `wanted`: once per rank batch, in its last backward pass."""
    if wanted or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def _contribute_nothing(state: TrainState, config: StepConfig) -> None:
    """Take part in the exchange of gradients with zeros, by a forward and backward pass over a batch of no rows.

    The model is in eval mode, because such a batch has no statistics; synchronized BatchNorms take those of the other
    ranks. They exchange tensors of the batch's dtype, which is fp32 on ranks with images: so no autocast here.
    """
    config = replace(config, precision="fp32")
    side = 32  # any size works
    state.forward.train(state.synchronized)
    # a compiled backward pass of no rows fails in torch 2.15, and compiling does not pay for a step that is rare
    with torch.compiler.set_stance("force_eager"):
        _logits(state.forward, torch.zeros(0, 3, side, side, device=state.device), config).sum().backward()
    state.forward.train()
