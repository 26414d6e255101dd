"""From a recipe to the parts of a training run: state and wrappers, steps, cadence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infra.errors import UserError
from pipelines.data.ingest import Stream
from pipelines.feed import Steps
from pipelines.recipe import Recipe
from pipelines.start_weights import load_start
from resnet_core.augment import step_generator
from resnet_core.batchnorm import synchronize
from resnet_core.compute import compile_forward, lacks, resolve, to_memory_format
from resnet_core.curriculum import Phase
from resnet_core.loop import Cadence
from resnet_core.losses import LossConfig
from resnet_core.models import (
    ResNet,
    build_model,
    grow,
    set_drop_path,
    set_generator,
)
from resnet_core.optim import add_new_parameters, build_optimizer
from resnet_core.optim.averaging import WeightAverage, equal, exponential
from resnet_core.optim.scaling import LossScaler
from resnet_core.schedule import ramp, to_steps, total_steps
from resnet_core.state import TrainState
from resnet_core.step import StepConfig

_EVERY_RANK = -1  # draws that no rank may make differently


def decided(recipe: Recipe, device: torch.device, tell: Callable[[str], None] = lambda line: None) -> Recipe:
    """Return the recipe with every "auto" of its compute section decided, alike on all ranks, which call this together.

    `tell` has a line of what a run goes without.

    Raises:
        UserError: the recipe asks this worker for what it cannot do.
    """
    try:
        return recipe.model_copy(update={"compute": resolve(recipe.compute, device, tell)})
    except ValueError as error:
        raise UserError(str(error)) from error


def continued(recipe: Recipe, began: Mapping[str, Any], device: torch.device) -> Recipe:
    """The `decided` recipe in the precision of the checkpoint that is continued, whose flat recipe is `began`."""
    precision = began["compute.precision"]
    if missing := lacks(precision, device):
        raise UserError(
            f"this run began in {precision}, and this worker's {missing}: resume it where they are, or begin another "
            'run.name with compute.precision = "auto"'
        )
    return recipe.model_copy(update={"compute": dataclasses.replace(recipe.compute, precision=precision)})


def build_state(recipe: Recipe, device: torch.device, world_size: int, samples: int, start_uri: str = "") -> TrainState:
    """Model, optimizer and their wrappers as they are at step 0, equal on every rank, for an epoch of `samples`.

    In this order: weights to start from (`start_uri`, if any), device, layout, synchronized BatchNorm, average, DDP,
    compile.
    """
    torch.manual_seed(recipe.run.seed)
    network = build_model(recipe.phases(samples)[0].model)
    if start_uri:
        load_start(network, recipe.model, start_uri)
    network = network.to(device)
    model: nn.Module = to_memory_format(network, recipe.compute.channels_last)
    if recipe.optim.sync_batch_norm:
        model = _synchronized(model, world_size)
    optimizer = build_optimizer(model, recipe.optim)
    average = average_of(model, recipe, samples)
    forward = _wrapped(model, recipe, device, world_size)
    scaler = scaler_of(recipe, device)
    return TrainState(model=model, forward=forward, optimizer=optimizer, average=average, scaler=scaler)


def deepen(state: TrainState, recipe: Recipe, phase: Phase, world_size: int) -> None:
    """Grow the network, its average, its optimizer and its wrappers to the depth of `phase`; what it computes stays."""
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
    state.forward = state.model  # lets go of the old wrapper, and of its hooks, before there is a new one
    state.forward = _wrapped(state.model, recipe, state.device, world_size)


def _wrapped(model: nn.Module, recipe: Recipe, device: torch.device, world_size: int) -> nn.Module:
    """Return what a step calls. Buffers stay each rank's own until an evaluation takes rank 0's (`share_buffers`)."""
    forward = model
    if world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        forward = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    if recipe.compute.compile is True:
        compile_forward(forward)
    return forward


def average_of(model: nn.Module, recipe: Recipe, samples: int) -> WeightAverage | None:
    """The average of the model's weights that the recipe asks for, if any."""
    optim = recipe.optim
    if optim.ema_decay:
        return WeightAverage(model, exponential(optim.ema_decay, every=optim.ema_every, warmup=optim.ema_warmup))
    return WeightAverage(model, equal(recipe.average_start(samples))) if optim.average_from else None


def scaler_of(recipe: Recipe, device: torch.device) -> LossScaler | None:
    """Return a fresh scaler of the loss where the `decided` recipe computes in fp16."""
    return LossScaler(device) if recipe.compute.precision == "fp16" else None


def _synchronized(model: nn.Module, world_size: int) -> nn.Module:
    try:
        return synchronize(model, world_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def step_config(recipe: Recipe, mean_image_HWC: Tensor | None = None) -> StepConfig:
    """What a step does with a batch and with its gradient, by the `decided` recipe; the mean image is on its device."""
    precision = recipe.compute.precision
    assert precision != "auto"
    return StepConfig(
        augment=recipe.augment,
        mean_image_HWC=mean_image_HWC,
        loss=LossConfig.of(recipe.optim),
        clip_norm=recipe.optim.clip_norm,
        sam_rho=recipe.optim.sam_rho,
        sam_every=recipe.optim.sam_every,
        precision=precision,
        channels_last=recipe.compute.channels_last,
    )


def before_step(recipe: Recipe, samples: int, world_size: int) -> Callable[[TrainState, int, torch.Generator], None]:
    """What a step's number decides in the model: depth, rates of stochastic depth, and where random masks come from."""
    schedule, masked = recipe.schedule, bool(recipe.model.drop_path or recipe.model.dropout)
    ramp_steps = to_steps(schedule.drop_path_ramp, schedule.unit, samples, recipe.optim.global_batch_size)
    grows_at = {phase.first_step: phase for phase in recipe.phases(samples)[1:]} if recipe.curriculum.model else {}

    def prepare(state: TrainState, step: int, generator: torch.Generator) -> None:
        if step in grows_at:
            deepen(state, recipe, grows_at[step], world_size)
        if masked:
            set_generator(state.model, generator)
            set_drop_path(state.model, ramp(step, ramp_steps))

    return prepare


def feed_steps(recipe: Recipe, stream: Stream, world_size: int) -> Steps:
    """How one of `world_size` workers cuts its rows of the stream into steps.

    An elastic run that is short of workers passes each share through the model in parts, none larger than a share is
    on all of its workers: BatchNorm has its statistics over as many images, and a device needs no more memory.
    Synchronized BatchNorm has them over the whole step in any case.
    """
    samples, limit, most = stream.manifest.splits[stream.split], recipe.compute.microbatch_size, recipe.run.workers[1]
    if world_size < most and not limit and not recipe.optim.sync_batch_norm:
        limit = feed_steps(recipe, stream, most).images_per_rank
    return Steps(
        total_samples=stream.total_samples,
        total_steps=total_steps(recipe.schedule, samples, recipe.optim.global_batch_size),
        global_batch_size=recipe.optim.global_batch_size,
        world_size=world_size,
        microbatch_size=limit,
        repeats=recipe.data.repeats,
        chunk_rows=1 if recipe.data.device_cache else stream.chunks(world_size).rows,
    )


def cadence_of(recipe: Recipe, samples: int, total: int) -> Cadence:
    return Cadence(
        total_steps=total,
        log_every_steps=recipe.run.log_every_steps,
        eval_steps=frozenset(recipe.evaluation_steps(samples)),
        checkpoint_every_steps=recipe.run.checkpoint_every_steps,
    )
