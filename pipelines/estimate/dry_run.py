"""`train.py RECIPE --dry-run`: what a run will take, and the checks that it would make. Nothing is started.

The time is a model: on this machine from steps timed in this process, on an instance type from its GPU's published
speed on ResNet-50, scaled by multiply-adds. Each line says what it is from, and how far off it may be.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import open_store
from pipelines.config.compute_budget import compute
from pipelines.config.recipe import Recipe, build_recipe, data_name
from pipelines.data.images.stored import Form
from pipelines.estimate.checks import Check, Checked, check_storage, check_workers, checked
from pipelines.estimate.machines import GIB, Machine, instance, machines_for, this_machine
from pipelines.estimate.timing import (
    BACKWARD,
    START_S,
    ImageCounts,
    Timing,
    forward_multiply_adds,
    timing_here,
    timing_of,
    trained_images,
)
from resnet_core.schedule import total_steps

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.estimate.memory import TrainingMemory

PUBLISHED: dict[str, tuple[int, int, int, Form]] = {
    "imagenet": (1_281_167, 50_000, 1000, "original"),
    "cifar10": (50_000, 10_000, 10, "raw"),
    "fashion_mnist": (60_000, 10_000, 10, "raw"),
}
"""Training images, test images, classes and stored form of public data sets, by their folders in shipped recipes."""
_UNKNOWN: tuple[int, int, int, Form] = (0, 0, 0, "original")
_KEPT = 2  # newest checkpoints, besides the best
_WORKER_BASE = 550 * 2**20  # torch and Ray in a process, with nothing of the run; docs/results.md
_RAY_BASE = 2.4 * GIB  # Ray's own processes, the controller, the driver with MLflow
_OBJECT_STORE_SHARE = 0.3  # of the memory; Ray's default


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunRequest:
    """Options of `train.py --dry-run`."""

    instance: str = ""
    """AWS instance type; "" = this machine."""
    price: float | None = None
    """US dollars an hour of one machine; None = the table's."""
    images: int = 0
    """Training images, if there is no data set yet; 0 = known from the data set or its source."""
    classes: int = 0


def request_of(arguments: argparse.Namespace) -> DryRunRequest:
    """Return the options that `pipelines.cli.add_estimate` adds. Raise UserError if one is out of range."""
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise UserError(f"--price must be at least 0, got {arguments.price}")
    for name in ("images", "classes"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} must be at least 0, got {getattr(arguments, name)}")
    return DryRunRequest(
        instance=arguments.instance, price=arguments.price, images=arguments.images, classes=arguments.classes
    )


def dry_run(recipe: Recipe, request: DryRunRequest, console: Console) -> None:
    """Print the estimate and the checks.

    Raises:
        UserError: a check fails, an option is wrong, or the number of images is not known.
    """
    machine = instance(request.instance) if request.instance else this_machine()
    state = checked(recipe)
    images = _images(state, request)
    recipe = state.recipe
    if not recipe.model.num_classes:
        recipe = build_recipe({}, {**recipe.flat(), "model.num_classes": images.classes}, where=recipe.name)
    from pipelines.estimate.calibration import calibrated, device_here, half_precision
    from pipelines.estimate.memory import object_store_bytes, training_memory

    workers = max(1, recipe.run.workers[1])
    share = recipe.optim.global_batch_size // workers
    at_once = min(share, recipe.compute.microbatch_size or share)
    half = (
        half_precision(recipe.compute.precision, device_here(recipe.run.use_gpu))
        if machine.here
        else (recipe.compute.precision != "fp32")
    )
    memory = training_memory(recipe, images.train, at_once, half=half, workers=workers)
    if machine.here:
        data = (open_store(recipe.data.uri), state.manifest) if state.manifest else None
        timing = timing_here(recipe, images, machine, calibrated(recipe, images.train, data), _form(state))
    else:
        timing = timing_of(recipe, images, machine, _form(state), half=half)
    tasks = max(1, machine.cores - (0 if machine.gpus else workers))
    blocks = object_store_bytes(share // recipe.data.repeats, recipe.data.image_size, workers=workers, tasks=tasks)
    storage = (recipe.run.keep_best + _KEPT) * memory.checkpoint
    if machine.here:
        state.add("workers", lambda: check_workers(recipe, machine.cores))
    state.add("storage", lambda: check_storage(recipe, storage + memory.checkpoint))
    state.add("memory", lambda: _check_memory(machine, memory, blocks, workers))
    for line in (
        *_size_lines(recipe, images),
        *_memory_lines(memory, blocks, at_once=at_once, half=half),
        f"storage     {storage / 1e9:,.2f} GB: {recipe.run.keep_best + _KEPT} checkpoints of "
        f"{memory.checkpoint / 1e6:,.1f} MB, and one more while it is written",
        *_time_lines(timing),
        *_cost_lines(timing, machine, recipe, request.price),
        *(check.line for check in state.checks),
    ):
        console.print(line)
    _require_passed(state.checks)


def _require_passed(checks: Sequence[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    if failed:
        names = ", ".join(check.name for check in failed)
        raise UserError(f"{len(failed)} of {len(checks)} checks failed, train.py would stop there: {names}")


def _images(state: Checked, request: DryRunRequest) -> ImageCounts:
    """Return the numbers of images: of the data set, of its source, as published, or as the options say."""
    recipe = state.recipe
    splits = state.manifest.splits if state.manifest else state.source.rows if state.source else {}
    if splits:
        classes = len((state.manifest or state.source).class_names)  # type: ignore[union-attr]
        test = splits.get(recipe.data.test_split, 0)
        return ImageCounts(
            train=splits.get(recipe.data.train_split, sum(splits.values())),
            evaluated=splits.get(recipe.data.eval_split, test),
            test=test,
            classes=classes,
            source="the data set's" if state.manifest else "its source's",
        )
    name = _public_name(recipe)
    train, test, classes, _ = PUBLISHED.get(name, _UNKNOWN)
    train, classes = request.images or train, request.classes or recipe.model.num_classes or classes
    if not train or not classes:
        raise UserError(
            f"there is no data set at {recipe.data.uri}, so its size is not known: prepare it, or give "
            "--images and --classes"
        )
    source = "as given" if request.images else f"as published for {name}"
    test = test or train // 10
    return ImageCounts(train=train, evaluated=test, test=test, classes=classes, source=source)


def _form(state: Checked) -> Form:
    if state.manifest:
        return state.manifest.stored.form
    if state.recipe.prepare.form != "auto":
        return state.recipe.prepare.form
    if state.source is not None:
        return "raw" if state.source.side > 0 else "original"
    return PUBLISHED.get(_public_name(state.recipe), _UNKNOWN)[-1]


def _public_name(recipe: Recipe) -> str:
    return data_name(recipe.data.uri).replace("-", "_")


def _size_lines(recipe: Recipe, images: ImageCounts) -> Iterator[str]:
    from pipelines.training.preview import epochs

    batch = recipe.optim.global_batch_size
    steps = total_steps(recipe.schedule, images.train, batch)
    counts = f"{images.train:,} training images, {images.test:,} test images, {images.classes:,} classes"
    yield f"data        {counts} ({images.source})"
    yield (
        f"run         {steps:,} steps of {batch:,} images, {epochs(steps, images.train / batch)} epochs, "
        f"{trained_images(recipe, images):,} images, {len(recipe.evaluation_steps(images.train)):,} evaluations"
    )
    total = compute(recipe, images.train)
    each = forward_multiply_adds(recipe, recipe.model.name, recipe.data.image_size)
    yield (
        f"compute     {each / 1e6:,.0f} M multiply-adds an image, forward; {BACKWARD * total / 1e12:,.4g} T in the "
        "whole run, forward and backward"
    )


def _memory_lines(memory: TrainingMemory, blocks: int, *, at_once: int, half: bool) -> Iterator[str]:
    mb = 1e6
    state = memory.weights + memory.gradients + memory.optimizer + memory.average + memory.exchange
    kept = f"{memory.activations / mb:,.0f} MB of activations of {at_once:,} images"
    yield (
        f"memory      {memory.device / mb:,.0f} MB a worker: {state / mb:,.0f} MB of weights "
        f"({memory.weights / mb:,.1f}), gradients and optimizer, {kept} in {'half precision' if half else 'fp32'}"
    )
    yield f"            at most {blocks / mb:,.0f} MB in Ray's object store"


def _time_lines(timing: Timing) -> Iterator[str]:
    low, high = timing.total_s / timing.factor, timing.total_s * timing.factor
    yield (
        f"time        {_span(timing.total_s)}: {_span(timing.train_s)} of training at {timing.rate:,.0f} images/s, "
        f"{_span(timing.evaluation_s)} of evaluation, {_span(START_S)} to start"
    )
    yield f"            {_span(low)} to {_span(high)} is likely; limited by {timing.limit}; {timing.basis}"
    if timing.slowdown > 1:
        yield (
            f"            of an idle machine: other programs take {1 - 1 / timing.slowdown:.0%} of these cores now, at "
            f"which the run would take {_span(timing.total_s * timing.slowdown)}"
        )


def _cost_lines(timing: Timing, machine: Machine, recipe: Recipe, price: float | None) -> Iterator[str]:
    hour = machine.hour if price is None else price
    if hour is None:
        yield "cost        not known for this machine: --price gives its price an hour, --instance names a type to rent"
        return
    count = machines_for(machine, recipe.run.workers[1])
    cost = hour * count * timing.total_s / 3600
    machines = f"{count} x {machine.name}" if count > 1 else machine.name
    origin = "as given" if price is not None else "list price, on demand, us-east-1: check it"
    yield (
        f"cost        ${cost:,.2f} (${cost / timing.factor:,.2f} to ${cost * timing.factor:,.2f}): {machines} at "
        f"${hour:,.3f} an hour each ({origin}), without head and storage"
    )


def _check_memory(machine: Machine, memory: TrainingMemory, blocks: int, workers: int) -> str:
    if machine.gpu is not None:
        have = machine.gpu.memory
        if memory.device > have:
            raise UserError(
                f"a worker needs {memory.device / GIB:,.1f} GiB, and the {machine.gpu.name} has {have / GIB:,.0f}: "
                "lower compute.microbatch_size, or choose a larger GPU"
            )
        return f"{memory.device / GIB:,.1f} of the {machine.gpu.name}'s {have / GIB:,.0f} GiB"
    store = min(blocks, _OBJECT_STORE_SHARE * machine.memory)
    needed = workers * (memory.device + _WORKER_BASE) + store + _RAY_BASE
    if needed > machine.memory:
        raise UserError(
            f"about {needed / GIB:,.1f} GiB are needed, and {machine.name} has {machine.memory / GIB:,.1f}: lower "
            "compute.microbatch_size or run.num_workers"
        )
    return f"about {needed / GIB:,.1f} of this machine's {machine.memory / GIB:,.1f} GiB, with Ray"


def _span(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} h"
