"""Expected duration of a run: from steps timed on this machine, or from the published speed of a GPU.

The time is a model (docs/scaling.md): a stage that is too slow for the others limits the rate. Its error is stated with
each estimate; docs/results.md has what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipelines.config.compute_budget import compute
from pipelines.config.recipe import Recipe
from pipelines.data.images.stored import Form
from pipelines.estimate.machines import REFERENCE, REFERENCE_MULTIPLY_ADDS, Machine, machines_for
from pipelines.estimate.scaling import Job, Node, images_per_second
from resnet_core.config import VARIANTS
from resnet_core.schedule import total_samples

if TYPE_CHECKING:
    from pipelines.estimate.calibration import Rates

START_S = 50.0
"""Seconds of imports, Ray, workers and first blocks."""
BACKWARD = 3
"""Multiply-adds of a training step over those of its forward pass."""
_EVALUATION_START_S = 2.0
_ERROR_HERE = 1.5
_FREE_SHARE = 0.85  # of the cores; the rest goes to Ray and the driver
_BUSY = 1.2  # wall-clock over CPU time that an idle machine may have
_DECODED_PER_CORE = 714  # JPEGs of 110 kB per second; the constant of docs/scaling.md
_SPEEDUP: dict[Form, float] = {"original": 1.0, "jpeg": 3.1, "raw": 4.6}  # docs/stored-forms.md
_LEAST_RAW = 10.0  # times as fast are the smallest raw images, whose time is that of rows, not of pixels
_STORED_BYTES = 110e3
_COORDINATOR_BLOCKS_PER_S = 190


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCounts:
    """Numbers of images and classes that an estimate assumes."""

    train: int
    evaluated: int  # of the split that evaluations score
    test: int
    classes: int
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Expected duration of a run."""

    rate: float  # training images per second
    limit: str  # stage that limits it
    train_s: float
    evaluation_s: float
    factor: float  # the time lies between the estimate divided and multiplied by this number
    basis: str
    slowdown: float = 1.0  # because other programs use this machine now

    @property
    def total_s(self) -> float:
        """Return the seconds of the whole command."""
        return START_S + self.train_s + self.evaluation_s


def timing_here(recipe: Recipe, images: ImageCounts, machine: Machine, rates: Rates, form: Form) -> Timing:
    """Return the time on this machine, whose cores train, decode and run Ray."""
    workers = max(1, recipe.run.workers[1])
    decode_s = recipe.data.repeats * (rates.decode_s or 1 / _decoded_per_core(form, recipe.data.image_size))
    threads = max(1, recipe.compute.threads_per_worker)
    first = recipe.phases(images.train)[0]
    # later phases have other sizes and depths: by their multiply-adds
    whole = compute(recipe, images.train) / (
        forward_multiply_adds(recipe, first.model.name, first.image_size) * trained_images(recipe, images)
    )
    step_s = rates.step_s * whole
    limits = {
        "the steps": workers / step_s,
        "this machine's cores": _FREE_SHARE * machine.cores / (step_s * threads + decode_s),
    }
    limit, rate = min(limits.items(), key=lambda item: item[1])
    scored = machine.cores * _FREE_SHARE / (step_s * threads / BACKWARD + decode_s)
    return Timing(
        rate=rate,
        limit=limit,
        train_s=trained_images(recipe, images) / rate,
        evaluation_s=_evaluation_s(recipe, images, scored),
        factor=_ERROR_HERE,
        basis=f"timed here ({rates.note})",
        slowdown=rates.slowdown if rates.slowdown > _BUSY else 1.0,
    )


def timing_of(recipe: Recipe, images: ImageCounts, machine: Machine, form: Form, *, half: bool) -> Timing:
    """Return the time on an instance type, by the model of docs/scaling.md."""
    assert machine.gpu is not None
    gpu, workers = machine.gpu, max(1, recipe.run.workers[1])
    speed = gpu.half if half else gpu.full
    count = machines_for(machine, workers)
    used = min(machine.gpus, workers)
    mean = compute(recipe, images.train) / trained_images(recipe, images)
    size = recipe.data.image_size
    node = Node(
        gpus=used,
        device_images_per_s=speed * REFERENCE_MULTIPLY_ADDS / mean,
        decode_cores=max(1, machine.cores - used) if recipe.data.decode_on == "host" else math.inf,
        decode_images_per_core_s=_decoded_per_core(form, size) / recipe.data.repeats,
    )
    job = Job(
        images_per_gpu_step=max(1, recipe.optim.global_batch_size // workers),
        stored_bytes=_STORED_BYTES,
        decoded_bytes=3 * size**2,
        gradient_bytes=0,
        blocks_per_s=_COORDINATOR_BLOCKS_PER_S,
        block_images=min(max(recipe.optim.global_batch_size / workers, 2**24 / (3 * size**2)), 2**26 / (3 * size**2)),
        step_spread=0.01,
    )
    rate, limit = images_per_second(node, count, job)
    scored = images_per_second(replace(node, device_images_per_s=node.device_images_per_s * BACKWARD), count, job)[0]
    return Timing(
        rate=rate,
        limit=limit,
        train_s=trained_images(recipe, images) / rate,
        evaluation_s=_evaluation_s(recipe, images, scored),
        factor=gpu.factor if recipe.model.name == REFERENCE[0] and size == REFERENCE[1] else 2 * gpu.factor,
        basis=f"{gpu.name}: {speed:,.0f} images/s of ResNet-50 ({gpu.source}), by multiply-adds",
    )


def _decoded_per_core(form: Form, size: int) -> float:
    """Return the images per second that a core decodes to crops; raw pixels by the number of pixels."""
    smaller = min(_LEAST_RAW, (REFERENCE[1] / size) ** 2) if form == "raw" else 1.0
    return _DECODED_PER_CORE * _SPEEDUP[form] * max(1.0, smaller)


def forward_multiply_adds(recipe: Recipe, name: str, size: int) -> int:
    """Return the multiply-adds of one image's forward pass through network `name` at `size` pixels."""
    from resnet_core.models.cost import cost

    model = replace(recipe.model, name=name) if name in VARIANTS else recipe.model
    return cost(model.variant, size=size, num_classes=recipe.model.num_classes).multiply_adds


def trained_images(recipe: Recipe, images: ImageCounts) -> int:
    """Return how many images the whole run trains on, repeats included."""
    return total_samples(recipe.schedule, images.train, recipe.optim.global_batch_size)


def _evaluation_s(recipe: Recipe, images: ImageCounts, rate: float) -> float:
    """Return the seconds of all evaluations, and of the last one, on the test split."""
    count = len(recipe.evaluation_steps(images.train))
    return (count * images.evaluated + images.test) / rate + (count + 1) * _EVALUATION_START_S
