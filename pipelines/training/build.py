"""Build the parts of a training run from a recipe: state and wrappers, steps, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from infra.errors import UserError
from pipelines.config.recipe import Recipe
from pipelines.training.batches import Steps
from pipelines.training.start_weights import StartWeights, load_start
from pipelines.training.stream import Stream
from resnet_core.augment import step_generator
from resnet_core.batchnorm import synchronize
from resnet_core.compute import compile_forward, lacks, resolve, to_memory_format
from resnet_core.curriculum import Phase
from resnet_core.loop import Intervals
from resnet_core.losses import LossConfig
from resnet_core.models import (
    ResNet,
    build_model,
    freeze,
    freeze_all_but_head,
    grow,
    set_drop_path,
    set_generator,
)
from resnet_core.optim import add_new_parameters, build_optimizer, fill_state
from resnet_core.optim.averaging import WeightAverage, equal, exponential
from resnet_core.optim.scaling import LossScaler
from resnet_core.schedule import ramp, to_steps, total_steps
from resnet_core.state import TrainState
from resnet_core.step import StepConfig

_EVERY_RANK = -1  # for draws that must be equal on all ranks


def decided(recipe: Recipe, device: torch.device, warn: Callable[[str], None] = lambda line: None) -> Recipe:
    """Return the recipe with every "auto" of its compute section decided, equal on all ranks, which call this together.

    `warn` is called with a line about each feature that the run cannot use.

    Raises:
        UserError: the recipe asks for a feature that this worker lacks.
    """
    try:
        return recipe.model_copy(update={"compute": resolve(recipe.compute, device, warn)})
    except ValueError as error:
        raise UserError(str(error)) from error


def continued(recipe: Recipe, began: Mapping[str, Any], device: torch.device) -> Recipe:
    """Return the `decided` recipe in the precision of the checkpoint to resume from; `began` is its flat recipe.

    Raises:
        UserError: the device lacks that precision.
    """
    precision = began["compute.precision"]
    if missing := lacks(precision, device):
        raise UserError(
            f"this run began in {precision}, and this worker's {missing}: resume on a device that has them, or begin "
            'another run.name with compute.precision = "auto"'
        )
    return recipe.model_copy(update={"compute": dataclasses.replace(recipe.compute, precision=precision)})


def build_state(
    recipe: Recipe, device: torch.device, world_size: int, samples: int, start: StartWeights | None = None
) -> TrainState:
    """Build model, optimizer and their wrappers for step 0, equal on every rank. `samples` is the length of an epoch.

    Order: weights to start from (`start`, if any), frozen parts, device, layout, synchronized BatchNorm, average,
    DDP, compile.
    """
    torch.manual_seed(recipe.run.seed)
    network = build_model(recipe.phases(samples)[0].model)
    if start:
        load_start(network, recipe.model, start)
    freeze(network, recipe.model.freeze)
    network = network.to(device)
    model: nn.Module = to_memory_format(network, recipe.compute.channels_last)
    if recipe.optim.sync_batch_norm:
        model = _synchronized(model, world_size)
    optimizer = build_optimizer(model, recipe.optim)
    average = average_of(model, recipe, samples)
    if recipe.head_steps(samples):
        freeze_all_but_head(network)
    forward = _wrapped(model, recipe, device, world_size)
    scaler = scaler_of(recipe, device)
    return TrainState(model=model, forward=forward, optimizer=optimizer, average=average, scaler=scaler)


def deepen(state: TrainState, recipe: Recipe, phase: Phase, world_size: int) -> None:
    """Grow the network, its average, its optimizer and its wrappers to the depth of `phase`; outputs stay the same."""
    for network in (state.model, state.average and state.average.model):
        if network is not None:
            assert isinstance(network, ResNet)
            generator = step_generator(recipe.run.seed, phase.first_step, _EVERY_RANK, torch.device("cpu"))
            grow(network, phase.model.variant.depths, generator)
    if state.average:
        state.average.model.requires_grad_(False)
    if recipe.optim.sync_batch_norm:
        state.model = _synchronized(state.model, world_size)
    add_new_parameters(state.optimizer, state.model, recipe.optim)
    state.forward = state.model  # drops the old wrapper and its hooks before the new one is made
    state.forward = _wrapped(state.model, recipe, state.device, world_size)


def unfreeze(state: TrainState, recipe: Recipe, world_size: int) -> None:
    """Let all parts train that `model.freeze` does not freeze, after the steps of `optim.head_first`."""
    assert isinstance(state.model, ResNet)
    freeze(state.model, recipe.model.freeze)
    fill_state(state.optimizer)  # a fused step needs either all momenta of a group or none
    state.forward = state.model  # drops the old wrapper, which exchanges the head's gradients only
    state.forward = _wrapped(state.model, recipe, state.device, world_size)


def _wrapped(model: nn.Module, recipe: Recipe, device: torch.device, world_size: int) -> nn.Module:
    """Return the module that a step calls. Ranks keep their own buffers until an evaluation (`share_buffers`)."""
    forward = model
    if world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        forward = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        if recipe.compute.all_reduce == "bf16":
            forward.register_comm_hook(None, bf16_compress_hook)
    if recipe.compute.compile is True:
        compile_forward(forward)
    return forward


def average_of(model: nn.Module, recipe: Recipe, samples: int) -> WeightAverage | None:
    """Return the average of the model's weights that the recipe asks for, if any."""
    optim = recipe.optim
    if optim.ema_decay:
        return WeightAverage(model, exponential(optim.ema_decay, every=optim.ema_every, warmup=optim.ema_warmup))
    return WeightAverage(model, equal(recipe.average_start(samples))) if optim.average_from else None


def scaler_of(recipe: Recipe, device: torch.device) -> LossScaler | None:
    """Return a new loss scaler if the `decided` recipe computes in fp16, else None."""
    return LossScaler(device) if recipe.compute.precision == "fp16" else None


def _synchronized(model: nn.Module, world_size: int) -> nn.Module:
    try:
        return synchronize(model, world_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def step_config(
    recipe: Recipe, mean_image_HWC: Tensor | None = None, class_weights_K: Tensor | None = None
) -> StepConfig:
    """Return the settings of a step from the `decided` recipe; the tensors are on the device."""
    precision = recipe.compute.precision
    assert precision != "auto"
    return StepConfig(
        augment=recipe.augment,
        mean_image_HWC=mean_image_HWC,
        loss=LossConfig.of(recipe.optim, recipe.loss, class_weights_K),
        clip_norm=recipe.optim.clip_norm,
        sam_rho=recipe.optim.sam_rho,
        sam_every=recipe.optim.sam_every,
        precision=precision,
        channels_last=recipe.compute.channels_last,
    )


def before_step(recipe: Recipe, samples: int, world_size: int) -> Callable[[TrainState, int, torch.Generator], None]:
    """Return a function that prepares a step: depth, frozen parts, stochastic depth's rates, generator of masks."""
    schedule, masked = recipe.schedule, bool(recipe.model.drop_path or recipe.model.dropout)
    ramp_steps = to_steps(schedule.drop_path_ramp, schedule.unit, samples, recipe.optim.global_batch_size)
    grows_at = {phase.first_step: phase for phase in recipe.phases(samples)[1:]} if recipe.curriculum.model else {}

    head_steps = recipe.head_steps(samples)

    def prepare(state: TrainState, step: int, generator: torch.Generator) -> None:
        if step in grows_at:
            deepen(state, recipe, grows_at[step], world_size)
        if head_steps and step == head_steps:
            unfreeze(state, recipe, world_size)
        if masked:
            set_generator(state.model, generator)
            set_drop_path(state.model, ramp(step, ramp_steps))

    return prepare


def steps_of_rank(recipe: Recipe, stream: Stream, world_size: int) -> Steps:
    """Return how each of `world_size` workers cuts its rows of the stream into steps.

    An elastic run with fewer workers has larger rank batches, and passes each through the model in parts. No part is
    larger than a rank batch on all workers, so BatchNorm sees as many images and a device needs no more memory.
    Synchronized BatchNorm needs no parts: its statistics always cover the whole step.
    """
    samples, limit, most = stream.manifest.splits[stream.split], recipe.compute.microbatch_size, recipe.run.workers[1]
    if world_size < most and not limit and not recipe.optim.sync_batch_norm:
        limit = steps_of_rank(recipe, stream, most).images_per_rank
    return Steps(
        total_samples=stream.total_samples,
        total_steps=total_steps(recipe.schedule, samples, recipe.optim.global_batch_size),
        global_batch_size=recipe.optim.global_batch_size,
        world_size=world_size,
        microbatch_size=limit,
        repeats=recipe.data.repeats,
        chunk_rows=1 if recipe.data.device_cache else stream.chunks(world_size).rows,
    )


def intervals_of(recipe: Recipe, samples: int, total: int) -> Intervals:
    return Intervals(
        total_steps=total,
        log_every_steps=recipe.run.log_every_steps,
        eval_steps=frozenset(recipe.evaluation_steps(samples)),
        checkpoint_every_steps=recipe.run.checkpoint_every_steps,
    )
