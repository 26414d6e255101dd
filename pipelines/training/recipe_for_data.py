"""Match recipes and data sets: name a recipe that fits a data set, and refuse data that a recipe is not made for."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infra.errors import UserError
from pipelines.cli.next_command import command, setting
from pipelines.config.paths import shown
from pipelines.config.recipe import RECIPES, Recipe, data_name, load_recipe
from pipelines.data.prepare.sources.mnist5k import MNIST5K, NAME
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import read_rows

if TYPE_CHECKING:
    from infra.storage import Store

PHOTOGRAPHS, SMALL_IMAGES = "my_images", "my_small_images"
_SMALL_PX = 40  # shorter side of the largest small image
_SAMPLED = 16  # images whose sides are read


def train_command(store: Store, manifest: Manifest, uri: str) -> str:
    """Return the command that trains a shipped recipe that fits the data set at `uri`."""
    own = _recipe_of(manifest)
    if own:
        moved = [] if _same_place(own.data.uri, uri) else setting("data.uri", uri)
        return command("train", own.name, *moved)
    loss = ["--set", "optim.loss=bce"] if manifest.multi_label else []
    named = [*setting("data.uri", uri), *setting("run.register_as", data_name(uri)), *loss]
    sides = shorter_sides(store, manifest)
    if not sides or max(sides) > _SMALL_PX:
        return command("train", PHOTOGRAPHS, *named)
    return command("train", SMALL_IMAGES, *named, *_small_settings(manifest, max(sides)))


def check_own_data(recipe: Recipe, store: Store, manifest: Manifest) -> None:
    """Raise UserError if the recipe names its source, and the data set was prepared from another one."""
    if recipe.data.source and not _made_from(manifest, recipe.data.source):
        raise UserError(
            f"recipe {recipe.name} is for the data set that is prepared from {recipe.data.source}, and "
            f"{shown(recipe.data.uri)} holds another one ({manifest.source}): to train on it, run "
            f"`{train_command(store, manifest, shown(recipe.data.uri))}`"
        )


def shorter_sides(store: Store, manifest: Manifest, split: str = "train") -> Sequence[int]:
    """Return the shorter sides, in pixels, of some stored images of the split; images that do not open are left out."""
    from PIL import Image, UnidentifiedImageError

    if manifest.stored.form == "raw":
        return [manifest.stored.size]
    shards = manifest.shards_of(split) or list(manifest.shards)
    sides = []
    for image in read_rows(store, shards[0], [0])["image"][:_SAMPLED] if shards else ():
        try:
            with Image.open(io.BytesIO(image.as_py())) as opened:
                sides.append(min(opened.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
            continue
    return sides


def _small_settings(manifest: Manifest, side: int) -> list[str]:
    """Return the settings for small images with this side, in pixels.

    Grey images are not flipped, because most of them are digits or letters.
    """
    wanted = {} if side == load_recipe(SMALL_IMAGES).data.image_size else {"image_size": side, "eval_resize": side}
    sizes = [part for key, value in wanted.items() for part in ("--set", f"data.{key}={value}")]
    return [*sizes, *(["--set", "augment.flip=false"] if manifest.stored.channels == 1 else [])]


def _recipe_of(manifest: Manifest) -> Recipe | None:
    """Return the shipped recipe that names the source of this data set, if any."""
    for file in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(file.stem)
        if recipe.data.source and _made_from(manifest, recipe.data.source):
            return recipe
    return None


def _made_from(manifest: Manifest, source: str) -> bool:
    """Return whether the manifest describes its source as `source`: the description has the folder's name."""
    if source == MNIST5K:
        return manifest.source.startswith(NAME)
    return re.search(rf"(^|\W){re.escape(data_name(source))}($|\W)", manifest.source) is not None


def _same_place(uri: str, other: str) -> bool:
    return os.path.abspath(uri) == os.path.abspath(other)
