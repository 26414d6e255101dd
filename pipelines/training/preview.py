"""Preview of a run, before it costs anything: what it trains, and warnings about likely problems.

data        8fe2c33026254d47 at data/photos: 2,250 train, 250 test images of 5 classes, stored as jpeg up to 256 px
model       resnet18: 11.2 M parameters, 148 M multiply-adds at 64 px
run         my_images-1c2a63ad: 1,406 steps, 20 epochs of 70, batch 32, peak rate 0.05, 2 workers, precision auto
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from infra.registry.gate import least_images
from pipelines.config.paths import shown
from pipelines.config.recipe import Recipe
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.report import read_report
from pipelines.data.shards.manifest import Manifest
from pipelines.training.recipe_for_data import shorter_sides
from resnet_core.schedule import total_steps

if TYPE_CHECKING:
    from infra.storage import Store

_LEAST_STEPS = 30  # per epoch
_LEAST_BATCH = 8  # images, for BatchNorm's statistics
_NAMED = 3  # classes in a warning
_WNID = re.compile(r"n\d{8}\b")  # ImageNet's classes; its images are used as they are stored
_FEW_PARAMETERS = 100_000  # up to here their number is printed in full


def summary(recipe: Recipe, manifest: Manifest) -> list[str]:
    """Return three lines: data, model, run. `recipe` has its number of classes filled in."""
    return [_data_line(recipe, manifest), _model_line(recipe), _run_line(recipe, manifest)]


def warnings(recipe: Recipe, store: Store, manifest: Manifest) -> list[str]:
    """Return a line for each likely problem of the run."""
    found = [*_class_warnings(store, manifest), *_pixel_warnings(store, manifest), *_batch_warnings(recipe, manifest)]
    found += [*_gate_warnings(recipe, manifest), *_size_warnings(recipe, store, manifest)]
    return [f"warning: {line}" for line in found]


def data_warnings(store: Store, manifest: Manifest) -> list[str]:
    """Return the `warnings` that hold for every run on the data set."""
    return [f"warning: {line}" for line in (*_class_warnings(store, manifest), *_pixel_warnings(store, manifest))]


def epochs(steps: int, steps_per_epoch: float) -> str:
    """Return the number of epochs as text: a whole number if it is less than one step away."""
    found = steps / steps_per_epoch
    whole = abs(found - round(found)) * steps_per_epoch < 1 and round(found) > 0
    return f"{found:.0f}" if whole else f"{found:.2f}".rstrip("0").rstrip(".")


def _data_line(recipe: Recipe, manifest: Manifest) -> str:
    splits = ", ".join(f"{rows:,} {split}" for split, rows in manifest.splits.items())
    what = f"{splits} images of {len(manifest.class_names):,} classes, stored as {_form(manifest.stored)}"
    return f"data        {manifest.name} at {shown(recipe.data.uri)}: {what}"


def _form(stored: Stored) -> str:
    match stored.form:
        case "original":
            return "the original files"
        case "jpeg":
            return f"jpeg up to {stored.size} px"
        case "raw":
            return f"raw {stored.size} x {stored.size} px"


def _model_line(recipe: Recipe) -> str:
    from resnet_core.models.cost import cost

    model, size = recipe.model, recipe.data.image_size
    found = cost(model.variant, size=size, num_classes=model.num_classes)
    start = f", {_trained(recipe)}" if model.freeze else ""
    parameters, adds = f"{found.parameters / 1e6:.3g} M parameters", f"{found.multiply_adds / 1e6:,.0f} M multiply-adds"
    return f"model       {model.name}: {parameters}, {adds} at {size} px{start}"


def _trained(recipe: Recipe) -> str:
    """Return how many parameters train where a part of the network is frozen."""
    import torch

    from resnet_core.models import build_model, freeze

    with torch.device("meta"):
        network = build_model(recipe.model)
    freeze(network, recipe.model.freeze)
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return f"of which {count:,} train" if count < _FEW_PARAMETERS else f"of which {count / 1e6:.3g} M train"


def _run_line(recipe: Recipe, manifest: Manifest) -> str:
    samples, batch = manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size
    steps = total_steps(recipe.schedule, samples, batch)
    parts = [
        f"{steps:,} steps",
        f"{epochs(steps, samples / batch)} epochs of {samples / batch:,.0f}",
        f"batch {batch:,}",
        f"peak rate {recipe.optim.peak_lr:.3g}",
        _workers(recipe),
        f"precision {recipe.compute.precision}",
    ]
    return f"run         {recipe.run_name}: {', '.join(parts)}"


def _workers(recipe: Recipe) -> str:
    least, most = recipe.run.workers
    if most == 0:
        return "this process"
    return f"{most} worker{'s' if most > 1 else ''}" if least == most else f"{least} to {most} workers"


def _class_warnings(store: Store, manifest: Manifest) -> Iterator[str]:
    names = manifest.class_names
    if len(names) == 1:
        yield f"there is only one class, {names[0]}: every prediction is right, and the network learns nothing"
    report = read_report(store)
    counts = report.classes if report else {}
    train, test = counts.get("train", []), counts.get("test", [])
    if single := [name for name, count in zip(names, train, strict=False) if count <= 1]:
        yield f"{_few(single)} with one training image or none: a network learns little from so few"
    if test and (unseen := [name for name, count in zip(names, test, strict=False) if not count]):
        yield f"{_few(unseen)} without a test image: the accuracy says nothing about them"


def _pixel_warnings(store: Store, manifest: Manifest) -> Iterator[str]:
    report = read_report(store)
    rotated = report.kinds.get("EXIF-rotated", 0) if report else 0
    imagenet = all(_WNID.match(name) for name in manifest.class_names)
    if rotated and manifest.stored.file_pixels == "stored" and not imagenet:
        yield (
            f"{rotated:,} EXIF-rotated images are used as they are stored, on their side or upside down: to turn them, "
            "prepare into another folder with prepare.pixels=displayed"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{len(names):,} {'classes' if len(names) > 1 else 'class'} ({', '.join(names[:_NAMED])}{more})"


def _batch_warnings(recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    samples, batch = manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size
    steps = samples / batch
    if steps >= _LEAST_STEPS:
        return
    smaller = _LEAST_BATCH
    while smaller * 2 * _LEAST_STEPS <= samples:
        smaller *= 2
    fits = smaller < batch and smaller % max(1, recipe.run.workers[1]) == 0
    remedy = f"try --set optim.global_batch_size={smaller}" if fits else "more images would help"
    if steps < 1:
        yield f"optim.global_batch_size = {batch:,} is more than the {samples:,} training images: {remedy}"
    else:
        slow = f"fewer than {_LEAST_STEPS}, so the network learns slowly"
        yield f"optim.global_batch_size = {batch:,} makes {steps:.0f} steps an epoch, {slow}: {remedy}"


def _gate_warnings(recipe: Recipe, manifest: Manifest) -> Iterator[str]:
    images, margin = manifest.splits[recipe.data.test_split], recipe.run.gate_margin
    least = least_images(margin)
    if recipe.run.register_as and images < least:
        often = least_images(margin, differing=0.1)
        yield (
            f"{images:,} {recipe.data.test_split} images are too few for run.gate_margin = {margin:g}: to show that a "
            f"later model is no worse takes {least:,}, or {often:,} if the two models differ on 10% of the images"
        )


def _size_warnings(recipe: Recipe, store: Store, manifest: Manifest) -> Iterator[str]:
    size, sides = recipe.data.image_size, shorter_sides(store, manifest, recipe.data.train_split)
    if sides and size > (side := round(median(sides))):
        yield (
            f"data.image_size = {size} enlarges the stored images (shorter side {side} px, the median): "
            f"{(size / side) ** 2:.1f} times the compute of {side} px, without more detail"
        )
