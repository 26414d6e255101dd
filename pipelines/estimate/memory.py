"""Memory and storage of a run, counted on torch's meta device: no tensor is ever filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from resnet_core.models import build_model
from resnet_core.models.cost import parameter_count
from resnet_core.optim import build_optimizer

if TYPE_CHECKING:
    from pipelines.config.recipe import Recipe
    from resnet_core.config import ModelConfig, OptimConfig

_FLOAT = 4  # bytes
_PROBE = 2  # images; BatchNorm needs two values per channel
BLOCK_BYTES = (16 * 2**20, 64 * 2**20)
"""Least and most bytes of a block, as in pipelines/training/stream.py."""
_AHEAD = 3  # blocks of a worker: two ahead, one in use
_BUFFERED = 5  # blocks of a data task: four that Ray has not taken, one in the making


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """Bytes of one worker's device, and of a checkpoint."""

    weights: int  # parameters and buffers
    gradients: int
    optimizer: int
    average: int
    exchange: int  # buckets of gradients, with several workers
    activations: int  # kept for the backward pass, at the largest phase
    checkpoint: int

    @property
    def device(self) -> int:
        """Return the bytes of a worker's device."""
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.exchange, self.activations)
        return sum(parts)


def training_memory(recipe: Recipe, samples: int, images: int, *, half: bool, workers: int) -> TrainingMemory:
    """Count the memory of a worker that passes `images` images at once; `samples` is the length of an epoch."""
    phases = recipe.phases(samples)
    last = phases[-1].model
    with torch.device("meta"):
        network = build_model(last)
    parameters = parameter_count(network) * _FLOAT
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    optimizer = _optimizer_bytes(network, recipe.optim)
    average = (parameters + buffers) if recipe.optim.ema_decay or recipe.optim.average_from else 0
    each = max(activation_bytes(phase.model, phase.image_size) for phase in phases)
    return TrainingMemory(
        weights=parameters + buffers,
        gradients=parameters,
        optimizer=optimizer,
        average=average,
        exchange=parameters if workers > 1 else 0,
        activations=images * each // (2 if half else 1),
        checkpoint=parameters + buffers + optimizer + average,
    )


def activation_bytes(model: ModelConfig, size: int) -> int:
    """Return the bytes in fp32 that autograd keeps of one image: all tensors saved for the backward pass."""
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage()._cdata] = tensor  # the storage, of which several tensors may be views
        return tensor

    with torch.device("meta"):
        network = build_model(model)
        images = torch.empty(_PROBE, model.in_channels, size, size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) // _PROBE


def _optimizer_bytes(network: nn.Module, optim: OptimConfig) -> int:
    """Return the bytes of the optimizer's state, after one step on the meta device."""
    optimizer = build_optimizer(network, optim)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def object_store_bytes(worker_images: int, size: int, *, workers: int, tasks: int) -> int:
    """Return the most bytes of blocks at once, of all workers and data tasks."""
    least, most = BLOCK_BYTES
    block = min(max(worker_images * 3 * size**2, least), most)
    return block * (max(1, workers) * _AHEAD + max(1, tasks) * _BUFFERED)
