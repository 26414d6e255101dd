"""From a recipe to the parts of a training run: state and wrappers, steps, cadence."""

from __future__ import annotations

import torch

from pipelines.data.ingest import Stream
from pipelines.feed import Steps
from pipelines.recipe import Recipe
from resnet_core.compute import compile_forward, to_memory_format
from resnet_core.ema import Ema
from resnet_core.loop import Cadence
from resnet_core.models import build_model
from resnet_core.optim import build_optimizer
from resnet_core.schedule import epoch_end_step, total_steps
from resnet_core.state import TrainState
from resnet_core.step import StepConfig


def build_state(recipe: Recipe, device: torch.device, world_size: int) -> TrainState:
    """Model, optimizer and their wrappers, equal on every rank; in this order: device, layout, EMA, DDP, compile."""
    torch.manual_seed(recipe.run.seed)
    model = to_memory_format(build_model(recipe.model).to(device), recipe.compute.channels_last)
    optimizer = build_optimizer(model, recipe.optim)
    ema = Ema(model, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
    forward = model
    if world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        forward = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
    if recipe.compute.compile:
        compile_forward(forward)
    return TrainState(model=model, forward=forward, optimizer=optimizer, ema=ema)


def step_config(recipe: Recipe) -> StepConfig:
    """What a step does with a batch, by the recipe."""
    return StepConfig(
        augment=recipe.augment,
        label_smoothing=recipe.optim.label_smoothing,
        precision=recipe.compute.precision,
        channels_last=recipe.compute.channels_last,
    )


def feed_steps(recipe: Recipe, stream: Stream, world_size: int) -> Steps:
    """How one of `world_size` workers cuts its rows of the stream into steps."""
    samples = stream.manifest.splits[stream.split]
    return Steps(
        total_samples=stream.total_samples,
        total_steps=total_steps(recipe.schedule, samples, recipe.optim.global_batch_size),
        global_batch_size=recipe.optim.global_batch_size,
        world_size=world_size,
        microbatch_size=recipe.compute.microbatch_size,
    )


def cadence_of(recipe: Recipe, samples: int, total: int) -> Cadence:
    """Evaluations at the end of every n-th epoch and of the run."""
    batch = recipe.optim.global_batch_size
    every = recipe.run.eval_every_epochs
    epochs = range(every, total * batch // samples + 1, every)
    return Cadence(
        total_steps=total,
        log_every_steps=recipe.run.log_every_steps,
        eval_steps=frozenset(epoch_end_step(epoch, samples, batch, total) for epoch in epochs),
        checkpoint_every_steps=recipe.run.checkpoint_every_steps,
    )
