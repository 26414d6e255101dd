"""Rare and common classes: the draws of balanced sampling and the class weights of the loss, from the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.nearest import nearest
from infra.storage import open_store
from pipelines.config.recipe import Recipe
from pipelines.data.order.draws import Balanced
from pipelines.data.shards.labels import split_labels

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.shards.manifest import Manifest

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassBalance:
    """How a run treats rare classes."""

    balanced: Balanced | None = None  # None = every image once an epoch
    class_weights: tuple[float, ...] = ()  # by class; empty = all 1
    lines: tuple[str, ...] = ()  # for users


def class_balance(recipe: Recipe, manifest: Manifest, run: Store) -> ClassBalance:
    """Return the draws and weights that a recipe asks for. `run` is the run's folder, which keeps the labels.

    Labels are read only if `data.sampling` is "balanced" or `loss.class_weights` is "auto".

    Raises:
        UserError: `check_class_names`, or a shard is missing or damaged.
    """
    check_class_names(recipe, manifest)
    table, names = recipe.loss.class_weights, manifest.class_names
    given = tuple(table.get(name, 1.0) for name in names) if isinstance(table, dict) else ()
    if recipe.data.sampling == "uniform" and table != "auto":
        return ClassBalance(class_weights=given)
    labels = split_labels(run, open_store(recipe.data.uri), manifest, recipe.data.train_split)
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    lines, balanced = [], None
    if recipe.data.sampling == "balanced":
        data = recipe.data
        balanced = Balanced(labels=labels, power=data.sampling_power, passes=data.sampling_passes)
        draws = np.pad(balanced.quotas(), (0, len(names)))[: len(names)]
        lines.append(f"sampling    balanced: {_range(counts)} images of a class give {_range(draws)} draws an epoch")
        counts = draws
    weights = automatic_weights(counts) if table == "auto" else given
    if table == "auto":
        lines.append(f"loss        class weights {min(weights):.3g} to {max(weights):.3g}, from the classes' counts")
    return ClassBalance(balanced=balanced, class_weights=weights, lines=tuple(lines))


def automatic_weights(counts: Counts) -> tuple[float, ...]:
    """Return N / (K n) for each class: n of N images, K classes with images. A class without images gets 1.

    These are scikit-learn's "balanced" class weights. Their mean over the images is 1, so they keep the learning rate.
    """
    present = int(np.count_nonzero(counts))
    weights = np.where(counts > 0, counts.sum() / (present * np.maximum(counts, 1)), 1.0)
    return tuple(weights.tolist())


def check_class_names(recipe: Recipe, manifest: Manifest) -> None:
    """Raise UserError if `loss.class_weights` names a class that the data set does not have."""
    table = recipe.loss.class_weights
    for name in table if isinstance(table, dict) else ():
        if name not in manifest.class_names:
            hint = nearest(name, manifest.class_names)
            raise UserError(
                f"loss.class_weights names the class {name!r}, which data set {manifest.name} does not have{hint}"
            )


def _range(counts: Counts) -> str:
    """Return the least and most of the classes that have any, such as "120 to 6,000"."""
    some = counts[counts > 0]
    least, most = int(some.min()), int(some.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
