"""Speed of a run on this machine: a few steps and a few images, timed in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipelines.data.order.plan import eval_items
from pipelines.data.tasks.crops import TaskConfig, load_item
from pipelines.training.build import before_step, build_state, decided, step_config
from resnet_core.augment import step_generator
from resnet_core.compute import computes_bf16, computes_fp16
from resnet_core.step import Microbatch, RankBatch, train_step

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.config.recipe import Recipe
    from pipelines.data.shards.manifest import Manifest

_STEPS_S, _DECODE_S = 6.0, 2.0  # after which no further step or image is timed
_MOST_STEPS = 8
_PROBE_PIXELS = 32 * 128 * 128  # of a timed batch at most; larger batches take as long per image
_LEAST_IMAGES = 2
_DECODED = 64  # images of the timed work item


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Speeds that were timed here."""

    step_s: float  # seconds per image of one worker's step: CPU time on a CPU, else wall-clock time
    decode_s: float  # CPU seconds per image of a data task
    slowdown: float  # wall-clock time over CPU time: above 1, other programs use this machine's cores
    note: str  # what was timed


def device_here(use_gpu: bool | str) -> torch.device:
    """Return the device of a worker on this machine."""
    gpu = torch.cuda.is_available() if use_gpu == "auto" else bool(use_gpu)
    return torch.device("cuda" if gpu else "cpu")


def half_precision(precision: str, device: torch.device) -> bool:
    """Return whether the network's forward pass runs in bf16 or fp16 on this device."""
    return precision in ("bf16", "fp16") or (precision == "auto" and (computes_bf16(device) or computes_fp16(device)))


def calibrated(recipe: Recipe, samples: int, data: tuple[Store, Manifest] | None) -> Rates:
    """Time steps of the first phase, and the decoding of the data set's images, if there is one. It takes seconds."""
    device = device_here(recipe.run.use_gpu)
    threads = torch.get_num_threads()
    if device.type == "cpu" and recipe.compute.threads_per_worker:
        torch.set_num_threads(recipe.compute.threads_per_worker)
    try:
        step_s, slowdown, images, steps = _step_seconds(recipe, samples, device)
    finally:
        torch.set_num_threads(threads)
    decode_s, decoded = _decode_seconds(recipe, *data) if data else (0.0, 0)
    note = f"{steps} steps of {images} images" + (f" and the decoding of {decoded}" if decoded else "")
    return Rates(step_s=step_s, decode_s=decode_s, slowdown=slowdown, note=note)


def _step_seconds(recipe: Recipe, samples: int, device: torch.device) -> tuple[float, float, int, int]:
    """Return (seconds per image, slowdown, images of a step, steps)."""
    recipe = decided(recipe, device)
    size, crops = recipe.phases(samples)[0].image_size, recipe.data.repeats
    share = recipe.optim.global_batch_size // max(1, recipe.run.workers[1])
    limit = recipe.compute.microbatch_size or share
    images = max(_LEAST_IMAGES, crops, min(share, limit, _PROBE_PIXELS // size**2))
    state = build_state(recipe, device, 1, samples)
    mean = torch.zeros(size, size, 3, device=device) if recipe.augment.pixel_mean else None
    config, prepare = step_config(recipe, mean), before_step(recipe, samples, 1)
    generator = step_generator(recipe.run.seed, 0, 0, device)
    classes = recipe.model.num_classes
    batch = RankBatch(
        microbatches=[
            Microbatch(
                images_BHWC=torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, device=device),
                labels_B=torch.arange(images, device=device) % classes,
            )
        ],
        count=images,
    )

    def step() -> tuple[float, float]:
        prepare(state, 0, generator)
        wall, cpu = time.monotonic(), time.process_time()
        train_step(state, batch, lr=0.0, config=config, generator=generator)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - wall, time.process_time() - cpu

    state.model.train()
    step()  # the first one allocates and chooses kernels
    timed = [step()]
    while len(timed) < _MOST_STEPS and sum(wall for wall, _ in timed) < _STEPS_S:
        timed.append(step())
    walls, cpus = sorted(wall for wall, _ in timed), sorted(cpu for _, cpu in timed)
    wall, cpu = walls[len(walls) // 2], cpus[len(cpus) // 2]
    if device.type == "cuda":
        return wall / images, 1.0, images, len(timed)
    threads = torch.get_num_threads()
    return cpu / threads / images, max(1.0, wall * threads / cpu), images, len(timed)


def _decode_seconds(recipe: Recipe, store: Store, manifest: Manifest) -> tuple[float, int]:
    """Return (CPU seconds per image, images) of a data task that makes training crops."""
    size = recipe.data.image_size
    item = next(iter(eval_items(manifest, recipe.data.train_split, 0, 1, image_size=size, item_rows=_DECODED)))
    config = TaskConfig(
        crop=recipe.data.at(size), train=True, seed=recipe.run.seed, rows_per_block=_LEAST_IMAGES, tolerant=True
    )
    began, images = time.process_time(), 0
    for block in load_item(store, manifest, item, config):
        images += len(block["id"])
        if time.process_time() - began > _DECODE_S:
            break
    return (time.process_time() - began) / max(1, images), images
