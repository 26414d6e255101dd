"""Descriptions (Markdown) and names of runs and registered versions, for people who read MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.proportions import CONFIDENCE, Interval

if TYPE_CHECKING:
    from pipelines.config.recipe import Recipe
    from pipelines.data.shards.manifest import Manifest
    from pipelines.evaluation.label_predictions import EvaluatedLabels
    from pipelines.evaluation.result import Evaluated


def folder_name(uri: str) -> str:
    """Return the name that people know a data set by: the name of its folder."""
    return uri.rstrip("/").rpartition("/")[2] or uri


def version_note(
    recipe: Recipe, manifest: Manifest, evaluated: Evaluated | EvaluatedLabels, split: str, step: int
) -> str:
    """Return the description of a version, without the gate's decision."""
    return f"**{split} {evaluated.headline}, checkpoint of step {step:,}\n\n{facts(recipe, manifest)}"


def facts(recipe: Recipe, manifest: Manifest) -> str:
    images = ", ".join(f"{count:,} {name}" for name, count in manifest.splits.items())
    start = f", from `{recipe.model.init_from}`" if recipe.model.init_from else ""
    size = recipe.data.image_size
    rows = {
        "Data": f"`{folder_name(recipe.data.uri)}`: {images} images, {len(manifest.class_names):,} classes "
        f"(`{recipe.data.uri}`, digest `{manifest.name}`)",
        "Network": f"`{recipe.model.name}` at {size}x{size} pixels{start}",
        "Training": f"recipe `{recipe.name}`, {recipe.schedule.length:g} {recipe.schedule.unit}, "
        f"batches of {recipe.optim.global_batch_size:,}",
    }
    return "\n".join(f"- {name}: {text}" for name, text in rows.items())


def bounds(interval: Interval) -> str:
    return f"{interval} at {CONFIDENCE:.0%} confidence"
